"""The one tree of errors, each with its gRPC status code and google.rpc details.

Raise these anywhere below a servicer: `deltaserve.rpc.interceptors` turns them into statuses, and
`deltaserve.rpc.status` turns a status back into the same class at the client. Messages say what was expected, what was
found, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "deltaserve.dev"


class DeltaServeError(Exception):
    """Base of every error that a user may see.

    Attributes:
        code: gRPC status code that the error becomes.
        reason: UPPER_SNAKE_CASE constant, sent as ErrorInfo.reason; what programs should branch on.
        metadata: ErrorInfo.metadata, numbers included as decimal strings.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message_text: str, **metadata: object) -> None:
        super().__init__(message_text)
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}

    @property
    def message(self) -> str:
        """The text of the error."""
        return str(self.args[0])

    def details(self) -> Sequence[Message]:
        """google.rpc details besides ErrorInfo."""
        return ()

    def to_status(self) -> status_pb2.Status:
        """Returns the error as google.rpc.Status, ErrorInfo first."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        packed = []
        for detail in (info, *self.details()):
            holder = any_pb2.Any()
            holder.Pack(detail)
            packed.append(holder)
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)


class InternalError(DeltaServeError):
    """A bug of ours; the message carries what is known."""

    reason = "INTERNAL"


class InvalidArgumentError(DeltaServeError):
    """A parameter, file or name is bad whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, message_text: str, *, field: str = "", **metadata: object) -> None:
        super().__init__(message_text, **metadata)
        self.field = field

    def details(self) -> Sequence[Message]:
        """BadRequest with the offending field."""
        violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
        return (error_details_pb2.BadRequest(field_violations=[violation]),)


class FormatError(InvalidArgumentError):
    """A file is not what it says it is: malformed safetensors, manifest, config or JSONL."""

    reason = "MALFORMED_FILE"


class NotFoundError(DeltaServeError):
    """No such model, revision, job, upload or worker."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"

    def __init__(self, message_text: str, *, kind: str, name: str, **metadata: object) -> None:
        super().__init__(message_text, **metadata)
        self.kind = kind
        self.name = name

    def details(self) -> Sequence[Message]:
        """ResourceInfo naming the missing thing."""
        return (
            error_details_pb2.ResourceInfo(resource_type=self.kind, resource_name=self.name, description=self.message),
        )


class AlreadyExistsError(DeltaServeError):
    """The name or id is taken by something else."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class PreconditionError(DeltaServeError):
    """The system's state does not allow it: wrong base, wrong tokenizer, unsupported architecture, failed gate."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class BaseMismatchError(PreconditionError):
    """The fine-tune or delta was made for another base than the one that is served."""

    reason = "BASE_MISMATCH"


class UnsupportedModelError(PreconditionError):
    """The architecture, or a feature of its config, is not supported."""

    reason = "UNSUPPORTED_MODEL"


class QualityGateError(PreconditionError):
    """The compressed model misses the quality policy; nothing was published."""

    reason = "QUALITY_GATE"


class QuotaError(DeltaServeError):
    """A quota, the disk or a buffer is exhausted."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUOTA_EXCEEDED"

    def __init__(
        self, message_text: str, *, subject: str, retry_seconds: float | None = None, **metadata: object
    ) -> None:
        super().__init__(message_text, **metadata)
        self.subject = subject
        self.retry_seconds = retry_seconds

    def details(self) -> Sequence[Message]:
        """QuotaFailure, and RetryInfo when waiting helps."""
        violation = error_details_pb2.QuotaFailure.Violation(subject=self.subject, description=self.message)
        failure = error_details_pb2.QuotaFailure(violations=[violation])
        return (failure, *_retry_info(self.retry_seconds))


class SlowConsumerError(QuotaError):
    """The client read its stream too slowly and its buffer filled up."""

    reason = "SLOW_CONSUMER"


class UnavailableError(DeltaServeError):
    """No worker, a full queue, or draining: the same request may succeed later."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"

    def __init__(self, message_text: str, *, retry_seconds: float | None = 1.0, **metadata: object) -> None:
        super().__init__(message_text, **metadata)
        self.retry_seconds = retry_seconds

    def details(self) -> Sequence[Message]:
        """RetryInfo."""
        return _retry_info(self.retry_seconds)


class DrainingError(UnavailableError):
    """The server is shutting down and takes nothing new."""

    reason = "DRAINING"


class OverloadedError(UnavailableError):
    """The queue is full, or the request would wait there for longer than its caller does."""

    reason = "OVERLOADED"


class WorkerLostError(UnavailableError):
    """The worker died mid-stream; metadata `tokens_emitted` says how far the stream was."""

    reason = "WORKER_LOST"


class DeadlineError(DeltaServeError):
    """The deadline or max_queue_wait passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class UnauthenticatedError(DeltaServeError):
    """The call carries no API key, or none that is known."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDeniedError(DeltaServeError):
    """The API key may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class OffsetError(DeltaServeError):
    """An upload chunk leaves a gap; metadata `expected_offset` says where to go on."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "OFFSET_MISMATCH"


class DataLossError(DeltaServeError):
    """Bytes do not match their checksum."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "CHECKSUM_MISMATCH"


class StoreError(DeltaServeError):
    """The object store refused or failed; the same call may succeed later."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "STORE"


def _retry_info(seconds: float | None) -> tuple[Message, ...]:
    if seconds is None:
        return ()
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(seconds * 1000))
    return (error_details_pb2.RetryInfo(retry_delay=delay),)
