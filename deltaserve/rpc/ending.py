"""The status that a call with streamed requests really ended with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

T = TypeVar("T")

_OVERWRITTEN = "Internal error from Core"
_LATE_SECONDS, _POLL_SECONDS = 1.0, 0.005


class Ending:
    """Remembers a call's status.

    grpc.aio sets the status of a call to INTERNAL when a write fails, also when it fails because the server has just
    ended the call with a status of its own (grpc/grpc#36066). That one may come before, and is seen by the call's done
    callback only, or after, and then stays.
    """

    def __init__(self, call: Any) -> None:
        """Begins to watch `call`, which has just been made."""
        self._call = call
        self._real: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def error(self, seen: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Returns the error that the call's real status makes, given the one that was raised."""
        if seen.details() != _OVERWRITTEN:
            return seen
        for _ in range(int(_LATE_SECONDS / _POLL_SECONDS)):
            self._note(self._call)
            if self._real is not None:
                return self._real
            await asyncio.sleep(_POLL_SECONDS)
        return seen

    def _note(self, call: Any) -> None:
        details = _ready(call.details())
        if details != _OVERWRITTEN and self._real is None:
            code, trailing = _ready(call.code()), _ready(call.trailing_metadata())
            self._real = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details)


def _ready(coroutine: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine that needs not wait returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        coroutine.close()
    raise RuntimeError("the call has not ended")
