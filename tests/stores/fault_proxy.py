"""A real HTTP proxy in front of an object store that makes it slow or faulty, request by request."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What the proxy saw; `number` counts the requests of this method and path from 0."""

    method: str
    target: str
    number: int
    head: bytes = b""


@dataclass(frozen=True)
class Fault:
    """What happens to a request.

    Attributes:
        delay: seconds before anything is done.
        status: answer with this status in place of the store.
        reset: close the connection without an answer, before the store hears of it.
        lose_answer: let the store carry it out, then close the connection.
        cut_after: pass so many bytes of the answer on, then close the connection.
        stall: never answer.
        flip: damage the last byte of the answer.
    """

    delay: float = 0.0
    status: int = 0
    reset: bool = False
    lose_answer: bool = False
    cut_after: int | None = None
    stall: bool = False
    flip: bool = False


OK = Fault()
_CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}


@dataclass
class FaultProxy:
    """Passes requests to `upstream`; `plan` decides what goes wrong."""

    upstream: tuple[str, int]
    plan: Callable[[Request], Fault] = lambda _: OK
    seen: list[Request] = field(default_factory=list)
    endpoint: str = ""
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FaultProxy"]:
        connections: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._serve(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)
            with contextlib.suppress(asyncio.CancelledError):
                await task

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 20)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in list(connections):
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()  # a reset, not an orderly end

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handles one request; tells whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        body = await _body(head, reader)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        key = (method, target.partition("?")[0])
        request = Request(method, target, self._counts[key], head)
        self._counts[key] += 1
        self.seen.append(request)
        fault = self.plan(request)
        await asyncio.sleep(fault.delay)
        if fault.stall:
            await asyncio.sleep(3600)
        if fault.reset:
            return False
        if fault.status:
            writer.write(_failure(fault.status))
            await writer.drain()
            return True
        answer = await self._ask(head, body, method)
        if fault.lose_answer:
            return False
        if fault.flip:
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        writer.write(answer if fault.cut_after is None else answer[: fault.cut_after])
        await writer.drain()
        return fault.cut_after is None

    async def _ask(self, head: bytes, body: bytes, method: str) -> bytes:
        """Returns the store's whole answer."""
        reader, writer = await asyncio.open_connection(*self.upstream, limit=1 << 20)
        try:
            writer.write(head + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            if method != "HEAD":
                answer += await _body(answer, reader)
            return answer
        finally:
            writer.close()


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


def _failure(status: int) -> bytes:
    code = _CODES[status]
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
