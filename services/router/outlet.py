"""The way of one stream's frames to its client: bounded, merged, paused when the client is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from deltaserve.errors import DeltaServeError, SlowConsumerError
from deltaserve.v1.inference_pb2 import GenerateResponse
from services.router.frames import FrameQueue
from services.router.pacing import Pacing

_LOW_WATER = 0.25  # share of the limit at which a paused request goes on
_IN_FLIGHT_FRAMES = 16  # what a worker may still send before a pause reaches it


class Outlet:
    """Takes frames from a worker without ever blocking, and hands them to a client as fast as it reads.

    When `limit_bytes` wait unread, `on_pause(True)` is called; when most were read, `on_pause(False)`. A client that
    leaves its stream paused for `patience` seconds, or fills the memory further all the same, is cut off with
    SlowConsumerError.

    Args:
        limit_bytes: see above.
        patience: see above.
        flush_seconds: gather chunks for so long before they are written.
        on_pause: called from `put` and while frames are written; must not block.
        pacing: gather chunks for at least as long as it says.
    """

    def __init__(
        self,
        limit_bytes: int,
        patience: float,
        flush_seconds: float,
        on_pause: Callable[[bool], None],
        pacing: Pacing | None = None,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._patience = patience
        self._on_pause = on_pause
        self._flush_seconds = flush_seconds
        self._pacing = pacing or Pacing()
        self._frames = FrameQueue(flush_seconds)
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._scope: asyncio.Timeout | None = None
        self._paused: asyncio.TimerHandle | None = None  # runs out when patience does
        self._closed = False
        self._error: DeltaServeError | None = None

    @property
    def paused(self) -> bool:
        """Whether the worker was told to wait for the client."""
        return self._paused is not None

    @property
    def closed(self) -> bool:
        """Whether the stream has ended, read or not."""
        return self._closed

    def put(self, frames: Iterable[GenerateResponse]) -> None:
        """Queues frames; those that come after the end are dropped."""
        if self._closed:
            return
        for frame in frames:
            self._frames.put(frame)
        self._wake.set()
        if self._frames.bytes > self._limit_bytes and self._paused is None:
            self._paused = self._loop.call_later(self._patience, self._give_up)
            self._on_pause(True)
        if self._frames.bytes > self._limit_bytes * 4 + self._frames.largest * _IN_FLIGHT_FRAMES:
            self._give_up()

    def finish(self, error: DeltaServeError | None = None) -> None:
        """Ends the stream once the client has read what waits: in order, or with `error`."""
        if not self._closed:
            self._closed, self._error = True, error
            self._wake.set()

    def cut(self, error: DeltaServeError) -> None:
        """Ends the stream with `error` at once, also in the middle of a write that the client does not take."""
        if self._closed and self._error is not None:
            return
        self._closed, self._error = True, error
        self._frames = FrameQueue()
        self._wake.set()
        if self._scope is not None:
            self._scope.reschedule(self._loop.time())

    async def drain_to(self, write: Callable[[GenerateResponse], Awaitable[None]]) -> None:
        """Writes frames until the end. Raises the error that the stream ended with."""
        try:
            async with asyncio.timeout(None) as self._scope:
                while (frame := await self._next()) is not None:
                    await write(frame)
        except TimeoutError:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self._scope = None
            self._stop_clock()

    async def _next(self) -> GenerateResponse | None:
        while True:
            now = self._loop.time()
            self._frames.flush_seconds = max(self._flush_seconds, self._pacing.seconds)
            due = self._frames.due(now)
            if due is not None and (due <= 0 or self._closed):
                frame = self._frames.take(now)
                if self._paused is not None and self._frames.bytes <= self._limit_bytes * _LOW_WATER:
                    self._stop_clock()
                    self._on_pause(False)
                return frame
            if self._closed:
                if self._error is not None:
                    raise self._error
                return None
            await self._woken(due)

    async def _woken(self, seconds: float | None) -> None:
        timer = None if seconds is None else self._loop.call_later(seconds, self._wake.set)
        self._wake.clear()
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _stop_clock(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None

    def _give_up(self) -> None:
        waiting = self._frames.bytes
        self.cut(
            SlowConsumerError(
                f"the client left {waiting} bytes of its stream unread: more than {self._limit_bytes} for "
                f"{self._patience:g} s, or far more; read faster, or ask for fewer logprobs",
                subject="stream buffer",
                unread_bytes=waiting,
                limit_bytes=self._limit_bytes,
            )
        )
