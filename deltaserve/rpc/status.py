"""Errors ↔ gRPC statuses with google.rpc details, both ways without loss of class, message or numbers."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from deltaserve import errors
from deltaserve.errors import DOMAIN, DeltaServeError

DETAILS_KEY = "grpc-status-details-bin"

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# a status of ours names its class by ErrorInfo.reason; a foreign one is classed by its code
_BY_CODE: dict[grpc.StatusCode, type[DeltaServeError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.PreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.QuotaError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
    grpc.StatusCode.OUT_OF_RANGE: errors.OffsetError,
    grpc.StatusCode.DATA_LOSS: errors.DataLossError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
}


class RemoteError(DeltaServeError):
    """A status that no class of ours stands for, such as CANCELLED or UNIMPLEMENTED; it keeps the remote code."""

    def __init__(self, code: grpc.StatusCode, message_text: str) -> None:
        super().__init__(message_text)
        self.code = code  # type: ignore[misc] # the one class whose code is an instance's


def error_from_rpc(error: grpc.RpcError) -> DeltaServeError:
    """Returns the error of a failed call as the class the server raised."""
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return RemoteError(grpc.StatusCode.UNKNOWN, str(error))
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return error_from_status(value)
    return _build(error.code(), error.details() or "", {}, [])


def error_from_status(data: bytes) -> DeltaServeError:
    """Returns the error of a serialised google.rpc.Status as the class it was made from."""
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return RemoteError(grpc.StatusCode.UNKNOWN, f"undecodable google.rpc.Status of {len(data)} bytes")
    details = list(_unpack(status))
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = next((d for d in details if isinstance(d, error_details_pb2.ErrorInfo)), None)
    return _build(code, status.message, dict(info.metadata) if info else {}, details)


def trailing(error: DeltaServeError) -> tuple[tuple[str, bytes], ...]:
    """Returns the trailing metadata that carries the error's details."""
    return ((DETAILS_KEY, error.to_status().SerializeToString()),)


def _unpack(status: status_pb2.Status) -> Iterator[Message]:
    for kind in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.ResourceInfo,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RetryInfo,
    ):
        for holder in status.details:
            detail = kind()
            if holder.Is(kind.DESCRIPTOR) and holder.Unpack(detail):
                yield detail


def _build(code: grpc.StatusCode, text: str, metadata: dict[str, str], details: list[Message]) -> DeltaServeError:
    cls = _class_of(code, details)
    if cls is None:
        return RemoteError(code, text)
    extra: dict[str, object] = {}
    for detail in details:
        extra |= _arguments(detail)
    if issubclass(cls, errors.NotFoundError):
        extra = {"kind": "", "name": ""} | extra
    elif issubclass(cls, errors.QuotaError):
        extra = {"subject": ""} | extra
    elif issubclass(cls, errors.UnavailableError):
        extra = {"retry_seconds": None} | extra
    return cls(text, **extra, **{k: v for k, v in metadata.items() if k not in extra})


def _class_of(code: grpc.StatusCode, details: list[Message]) -> type[DeltaServeError] | None:
    for detail in details:
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == DOMAIN:
            for cls in _tree(DeltaServeError):
                if cls.__dict__.get("reason") == detail.reason:
                    return cls
    return _BY_CODE.get(code)


def _tree(cls: type[DeltaServeError]) -> Iterator[type[DeltaServeError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)


def _arguments(detail: Message) -> dict[str, object]:
    if isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
        return {"field": detail.field_violations[0].field}
    if isinstance(detail, error_details_pb2.ResourceInfo):
        return {"kind": detail.resource_type, "name": detail.resource_name}
    if isinstance(detail, error_details_pb2.QuotaFailure) and detail.violations:
        return {"subject": detail.violations[0].subject}
    if isinstance(detail, error_details_pb2.RetryInfo):
        return {"retry_seconds": detail.retry_delay.ToMilliseconds() / 1000}
    return {}
