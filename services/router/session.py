"""One Session stream with one worker: sending, receiving, and noticing that it is dead."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc

from deltaserve.alongside import alongside
from deltaserve.errors import UnavailableError
from deltaserve.v1.worker_pb2 import Hello, SessionRequest, SessionResponse, Welcome
from deltaserve.v1.worker_pb2_grpc import WorkerServiceStub

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    SessionCall = grpc.aio.StreamStreamCall[SessionRequest, SessionResponse]

_WELCOME_SECONDS = 5.0
_SILENCE_SECONDS = 2.5  # workers report at least once a second


class Session:
    """A live stream; made by `open_session`."""

    def __init__(self, call: SessionCall, welcome: Welcome) -> None:
        self.welcome = welcome
        self._call = call
        self._outbox: deque[SessionRequest] = deque()
        self._wake = asyncio.Event()

    def send(self, message: SessionRequest) -> None:
        """Queues a message; never blocks. What cannot be sent is lost with the stream."""
        self._outbox.append(message)
        self._wake.set()

    async def receive(self, handle: Callable[[SessionResponse], None]) -> None:
        """Calls `handle` with what the worker says until it ends the stream.

        Raises:
            UnavailableError: the worker said nothing for two and a half seconds.
            grpc.aio.AioRpcError: the stream broke.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_SILENCE_SECONDS) as silence:
                while isinstance(message := await self._call.read(), SessionResponse):  # else EOF
                    silence.reschedule(loop.time() + _SILENCE_SECONDS)
                    handle(message)
        except TimeoutError as error:
            raise UnavailableError(f"the worker was silent for {_SILENCE_SECONDS:g} s") from error

    async def send_all(self) -> None:
        """Writes queued messages for as long as the stream lives."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                await self._call.write(self._outbox.popleft())


@contextlib.asynccontextmanager
async def open_session(channel: grpc.aio.Channel, router: str) -> AsyncIterator[Session]:
    """Opens the stream and shakes hands; ends it with the block.

    Raises:
        UnavailableError: no Welcome within five seconds, or something else came first.
        grpc.aio.AioRpcError: the worker cannot be reached.
    """
    call: SessionCall = WorkerServiceStub(channel).Session()
    try:
        try:
            async with asyncio.timeout(_WELCOME_SECONDS):
                await call.write(SessionRequest(hello=Hello(router=router)))
                first = await call.read()
        except TimeoutError as error:
            raise UnavailableError(f"the worker sent no Welcome within {_WELCOME_SECONDS:g} s") from error
        if not isinstance(first, SessionResponse) or not first.HasField("welcome"):
            raise UnavailableError("the worker's first message was no Welcome")
        session = Session(call, first.welcome)
        async with alongside(session.send_all()):
            yield session
    finally:
        call.cancel()
