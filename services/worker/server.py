"""The worker as a gRPC service: the servicer translates, `serve` starts and drains."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from deltaserve.errors import InvalidArgumentError
from deltaserve.metrics import exposed
from deltaserve.rpc.servers import Host, serving
from deltaserve.store import Store
from deltaserve.v1 import worker_pb2
from deltaserve.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from services.worker.front.disk import DiskCache
from services.worker.front.front import Front
from services.worker.front.revisions import Revisions
from services.worker.front.session import RouterSession
from services.worker.settings import WorkerSettings

log = logging.getLogger(__name__)

SERVICE = "deltaserve.v1.WorkerService"

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]


class WorkerServicer(WorkerServiceServicer):
    """WorkerService over a Front."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Session(  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Context
    ) -> AsyncIterator[worker_pb2.SessionResponse]:
        """Serves one router until it leaves, its connection breaks or the worker drains."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidArgumentError("the first message of a session must be hello", field="message")
        session = self._front.open(first.hello.router)
        # a cancelled call does not always reach the generator's `finally`; this always comes
        context.add_done_callback(lambda _: self._front.close(session))  # type: ignore[arg-type,unused-ignore]
        reading = asyncio.create_task(self._read(request_iterator, session))
        try:
            async for message in session.outbox.messages():
                yield message
        finally:
            reading.cancel()
            self._front.close(session)

    async def TokenizePrompt(  # noqa: N802 - gRPC's name
        self,
        request: worker_pb2.TokenizePromptRequest,
        context: Context,  # noqa: ARG002 - gRPC's signature
    ) -> worker_pb2.TokenizePromptResponse:
        """Tokenizes as a request for that revision would."""
        return worker_pb2.TokenizePromptResponse(response=await self._front.tokenize(request))

    async def _read(self, requests: AsyncIterator[worker_pb2.SessionRequest], session: RouterSession) -> None:
        try:
            async for message in requests:
                self._take(message, session)
        except Exception:
            log.exception("the session of router %s ends", session.router)
            raise
        finally:
            session.outbox.end()  # the router has closed its side

    def _take(self, message: worker_pb2.SessionRequest, session: RouterSession) -> None:
        match message.WhichOneof("message"):
            case "submit":
                self._front.submit(session, message.submit)
            case "abort":
                session.cancel(message.abort.request_id)
            case "pause":
                self._front.pause(session, message.pause.request_id, message.pause.paused)
            case "place":
                self._front.place(message.place)
            case "worths":
                self._front.rank(message.worths)
            case other:
                log.warning("router %s sent %s, which means nothing here", session.router, other)


async def serve(settings: WorkerSettings, stop: asyncio.Event) -> int:
    """Runs a worker until `stop` is set, then drains it.

    Returns:
        0 after a drain, 1 when the engine could not be kept alive (the log says why).
    """
    store = await asyncio.to_thread(Store.open, settings.store)
    disk = await asyncio.to_thread(DiskCache, settings.cache / "deltas", settings.cache_bytes, store)
    revisions = Revisions(store, disk, settings.base)
    await revisions.get("")  # a base without a usable tokenizer is refused before anything starts
    name = settings.name or f"{socket.gethostname()}:{settings.listen.rpartition(':')[2]}"
    front = Front(settings, name, disk, revisions)

    def register(server: grpc.aio.Server) -> None:
        add_WorkerServiceServicer_to_server(WorkerServicer(front), server)

    running = asyncio.create_task(front.run())
    try:
        async with (
            exposed(settings.metrics_listen, front.metrics.registry),
            serving(settings.listen, register, [SERVICE], grace_seconds=1.0) as host,
        ):
            log.info("worker %s of base %s listens on port %d", name, settings.base, host.port)
            status = await _watch(front, running, host, stop)
            if status == 0:
                await host.set_serving(False)
                await front.drain(settings.notice_seconds, settings.grace_seconds)
            return status
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _watch(front: Front, running: asyncio.Task[None], host: Host, stop: asyncio.Event) -> int:
    """Keeps health in step with the engine; returns when told to stop (0) or when the engine is lost for good (1)."""
    stopping = asyncio.create_task(stop.wait())
    while not stopping.done() and not running.done():
        change = asyncio.create_task(front.supervisor.change.wait())
        await host.set_serving(front.supervisor.engine is not None)
        await asyncio.wait({stopping, running, change}, return_when=asyncio.FIRST_COMPLETED)
        change.cancel()
    if running.done():
        log.error("the worker ends: %s", running.exception())
        stopping.cancel()
        return 1
    return 0
