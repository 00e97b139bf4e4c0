"""Bodies of requests: read within a limit, and decoded with messages that name field, expected and found."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from services.router.http.errors import RequestError

MOST_BYTES = 16 << 20

T = TypeVar("T", bound=msgspec.Struct)

_AT = re.compile(r" - at (`key` in )?`([^`]*)`$")  # of msgspec's messages
_NAMED = re.compile(r"`([^`]*)`$")
_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]")
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SHOWN = 80  # characters of a value that was found


async def read_body(request: Request) -> bytes:
    """Returns a request's body.

    Raises:
        RequestError: it is larger than MOST_BYTES (413).
        ClientDisconnect: the client left.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > MOST_BYTES:
        raise _too_large(int(declared))
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise _too_large(len(body))
    return bytes(body)


def decode(body: bytes, kind: type[T]) -> T:
    """Returns the body as `kind`; raises RequestError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except _MALFORMED as error:
        raise _refusal(error, body) from None


def _refusal(error: Exception, body: bytes) -> RequestError:
    try:
        whole = msgspec.json.decode(body)
    except _MALFORMED as malformed:
        return RequestError(f"the body is not JSON: {malformed}", code="invalid_json")
    text = str(error)
    place = _AT.search(text)
    path = place[2].removeprefix("$").removeprefix(".").removesuffix("[...]") if place else ""
    said = text[: place.start()] if place else text
    if place and place[1]:
        said = f"{said} as a key"
    named = _NAMED.search(said)
    if "unknown field" in said and named:
        name = _join(path, named[1])
        return RequestError(
            f"unrecognized field {name}; fields that are not known are refused, since one that is misspelt would "
            "silently do nothing",
            param=name,
            code="unknown_parameter",
        )
    if "missing required field" in said and named:
        name = _join(path, named[1])
        return RequestError(f"{name} is missing; it is required", param=name, code="missing_required_parameter")
    expected = said[0].lower() + re.sub(", got `[^`]*`", "", said[1:]).replace("`", "")
    found = msgspec.json.encode(_value_at(whole, path)).decode()
    shown = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}…"
    code = "invalid_type" if ", got " in said else "invalid_value"
    return RequestError(f"{path or 'the body'} is {shown}; {expected}", param=path, code=code)


def _value_at(value: Any, path: str) -> Any:
    """Returns the value at a path such as `messages[0].role`; the innermost that can be reached."""
    for name, index in _STEP.findall(path):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and index and int(index) < len(value):
            value = value[int(index)]
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _too_large(size: int) -> RequestError:
    return RequestError(
        f"the body has {size} bytes or more; expected at most {MOST_BYTES}", code="request_too_large", status=413
    )
