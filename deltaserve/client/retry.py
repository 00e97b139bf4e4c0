"""Retrying calls that are safe to repeat while a service is away: exponential backoff, bounded by a patience."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from deltaserve.errors import DeltaServeError, UnavailableError
from deltaserve.rpc.status import error_from_rpc

T = TypeVar("T")

_FIRST_DELAY, _LAST_DELAY = 0.2, 5.0  # seconds


class Backoff:
    """Waits longer after each failure in a row, and gives up once failures have lasted for `patience` seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._failures = 0
        self._failing_since = 0.0

    def reset(self) -> None:
        """Notes progress: the next failure is a first one."""
        self._failures = 0

    async def wait(self, error: DeltaServeError) -> None:
        """Sleeps before the next attempt; raises `error` instead when patience is at its end."""
        now = time.monotonic()
        if self._failures == 0:
            self._failing_since = now
        asked = error.retry_seconds if isinstance(error, UnavailableError) else None
        backoff = min(_FIRST_DELAY * 2**self._failures, _LAST_DELAY)
        delay = max(backoff, min(asked or 0.0, _LAST_DELAY)) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads clients
        if now + delay - self._failing_since > self._patience:
            raise error
        self._failures += 1
        await asyncio.sleep(delay)


async def unary(call: Callable[[], Awaitable[T]]) -> T:
    """Awaits a call; raises its failure as the DeltaServeError that the server raised."""
    try:
        return await call()
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None


async def persistent(call: Callable[[], Awaitable[T]], patience: float) -> T:
    """Awaits an idempotent call, again while the service is unavailable, for at most `patience` seconds."""
    backoff = Backoff(patience)
    while True:
        try:
            return await unary(call)
        except DeltaServeError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            await backoff.wait(error)
