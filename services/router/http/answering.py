"""Answers over one HTTP connection: whole or as server-sent events, and stopped when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deltaserve.errors import DeltaServeError, InternalError
from deltaserve.v1.inference_pb2 import GenerateRequest, GenerateResponse
from services.router.admission.keys import ANONYMOUS, Caller
from services.router.generation import Generations
from services.router.http.errors import error_body, error_response
from services.router.http.reply import Reply

log = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies such as nginx would gather events
]
_ERROR_SECONDS = 1.0  # for the client to take an error event: it may be one because the client takes nothing

Deliver = Callable[[int, GenerateResponse], Awaitable[None]]


class Answer(Response):
    """Runs generations and sends what comes of them. The client's leaving cancels them."""

    def __init__(
        self,
        generations: Generations,
        requests: Sequence[GenerateRequest],
        reply: Reply,
        parent: str | None,
        *,
        stream: bool,
        with_usage: bool,
        caller: Caller = ANONYMOUS,
    ) -> None:
        """Answers `requests` (of one HTTP request) by `reply`.

        Args:
            generations: what runs them.
            requests: one a prompt.
            reply: turns frames to JSON.
            parent: traceparent of the client.
            stream: whether text goes out as it comes.
            with_usage: whether a stream ends with usage.
            caller: whose requests they are.
        """
        super().__init__()
        self._generations = generations
        self._requests = requests
        self._reply = reply
        self._parent = parent
        self._stream = stream
        self._with_usage = with_usage
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""
        answer = self._events(scope, receive, send) if self._stream else self._body(scope, receive, send)
        await unless_gone(answer, receive)

    async def _body(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def deliver(place: int, frame: GenerateResponse) -> None:
            self._reply.collect(place, frame)

        try:
            await self._run(deliver)
        except DeltaServeError as error:
            response = error_response(error)
        else:
            body = msgspec.json.encode(self._reply.whole())
            response = Response(body, 200, media_type="application/json")
        response.headers["x-request-id"] = self._reply.id
        await response(scope, receive, send)

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = _Events(send, self._reply.id)

        async def deliver(place: int, frame: GenerateResponse) -> None:
            chunks = self._reply.stream(place, frame)
            if self._with_usage:
                chunks = [chunk | {"usage": None} for chunk in chunks]  # as OpenAI's: null in all but the last
            if chunks or is_accepted_by_worker(frame):
                await events.send(*chunks)

        try:
            await self._run(deliver)
            if self._with_usage:
                await events.send(self._reply.usage_chunk())
            await events.end(b"data: [DONE]\n\n")
        except DeltaServeError as error:
            if not events.begun:
                response = error_response(error)
                response.headers["x-request-id"] = self._reply.id
                await response(scope, receive, send)
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ERROR_SECONDS):
                    await events.end(_event(error_body(error)))

    async def _run(self, deliver: Deliver) -> None:
        """Runs all requests together; the first error ends the others."""

        async def run(place: int, request: GenerateRequest) -> None:
            await self._generations.run(request, lambda frame: deliver(place, frame), None, self._parent, self._caller)

        try:
            if len(self._requests) == 1:
                await run(0, self._requests[0])
                return
            async with asyncio.TaskGroup() as group:
                for place, request in enumerate(self._requests):
                    group.create_task(run(place, request))
        except Exception as error:
            first = _first(error)
            if isinstance(first, DeltaServeError):
                raise first from None
            log.exception("request %s failed", self._reply.id)
            raise InternalError(f"internal error of the router: {type(first).__name__}: {first}") from error


class _Events:
    """A stream of server-sent events; its headers go out with the first ones, so that errors before have a status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.begun = False
        self._send = send
        self._headers = [*_HEADERS, (b"x-request-id", request_id.encode("latin-1", "replace"))]

    async def send(self, *values: dict[str, Any]) -> None:
        """Sends events; returns when the connection took them."""
        await self._write(b"".join(map(_event, values)), more=True)

    async def end(self, data: bytes) -> None:
        """Sends the last event."""
        await self._write(data, more=False)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def is_accepted_by_worker(frame: GenerateResponse) -> bool:
    """Whether a worker has found nothing wrong with the request: from here on the status is 200."""
    kind = frame.WhichOneof("frame")
    return bool(frame.progress.worker) if kind == "progress" else kind in {"chunk", "finished"}


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Does `work` until it is done or the client leaves; then it is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        finished = working.done()
        leaving.cancel()
        working.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)
    if finished:
        working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
