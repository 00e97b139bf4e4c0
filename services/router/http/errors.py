"""Errors in OpenAI's shape, with the HTTP status that clients act on."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.responses import Response

from deltaserve.errors import (
    AlreadyExistsError,
    DeadlineError,
    DeltaServeError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    QuotaError,
    StoreError,
    UnauthenticatedError,
    UnavailableError,
)

_INVALID, _SERVER, _RATE = "invalid_request_error", "server_error", "rate_limit_error"

# the first class that an error is of decides
_STATUSES: tuple[tuple[type[DeltaServeError], int, str], ...] = (
    (InvalidArgumentError, 400, _INVALID),
    (NotFoundError, 404, _INVALID),
    (AlreadyExistsError, 409, _INVALID),
    (PreconditionError, 400, _INVALID),
    (QuotaError, 429, _RATE),
    (UnauthenticatedError, 401, _INVALID),
    (PermissionDeniedError, 403, _INVALID),
    (UnavailableError, 503, _SERVER),
    (StoreError, 503, _SERVER),
    (DeadlineError, 504, _SERVER),
)
# where OpenAI's name of a field is not the last part of ours
_PARAMS = {
    "token_ids": "prompt",
    "ids": "prompt",
    "text": "prompt",
    "grammar": "response_format",
    "json_object": "response_format",
    "json_schema": "response_format",
    "regex": "response_format",
    "lark": "response_format",
    "include_stop": "include_stop_str_in_output",
    "client_request_id": "request_id",
}


class RequestError(InvalidArgumentError):
    """A request that cannot be translated; it never crosses gRPC.

    Attributes:
        status: of the HTTP response.
        openai_code: OpenAI's word for what is wrong.
    """

    def __init__(self, message_text: str, *, param: str = "", code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message_text, field=param)
        self.status = status
        self.openai_code = code


def status_of(error: DeltaServeError) -> int:
    """Returns the HTTP status of an error."""
    if isinstance(error, RequestError):
        return error.status
    return next((status for kind, status, _ in _STATUSES if isinstance(error, kind)), 500)


def error_body(error: DeltaServeError) -> dict[str, Any]:
    """Returns `{"error": {"message", "type", "param", "code"}}`."""
    type_ = next((type_ for kind, _, type_ in _STATUSES if isinstance(error, kind)), _SERVER)
    param = None
    if isinstance(error, RequestError):
        param = error.field or None  # is OpenAI's name already
    elif isinstance(error, InvalidArgumentError):
        param = _param(error.field)
    elif isinstance(error, NotFoundError):
        param = "model"
    return {"error": {"message": error.message, "type": type_, "param": param, "code": _code(error)}}


def error_response(error: DeltaServeError) -> Response:
    """Returns the response to a request that failed before anything was sent."""
    seconds = getattr(error, "retry_seconds", None)
    headers = {"www-authenticate": "Bearer"} if isinstance(error, UnauthenticatedError) else {}
    if seconds is not None:
        headers |= {"retry-after": str(max(1, math.ceil(seconds))), "retry-after-ms": str(math.ceil(seconds * 1000))}
    body = msgspec.json.encode(error_body(error))
    return Response(body, status_of(error), headers, "application/json")


def _param(field: str) -> str | None:
    """Returns OpenAI's name of one of our fields, such as `sampling.logit_bias[7]`."""
    last = field.partition("[")[0].rpartition(".")[2]
    return _PARAMS.get(last, last) or None


def _code(error: DeltaServeError) -> str:
    if isinstance(error, RequestError):
        return error.openai_code
    if isinstance(error, NotFoundError) and error.kind in {"model", "revision"}:
        return "model_not_found"
    if isinstance(error, InvalidArgumentError) and "context_length" in error.metadata:
        return "context_length_exceeded"
    if isinstance(error, UnauthenticatedError):
        return "invalid_api_key"
    if type(error) is QuotaError:
        return "rate_limit_exceeded"
    if type(error) is InvalidArgumentError:
        return "invalid_value"
    return error.reason.lower()
