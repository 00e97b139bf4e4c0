"""HTTP/1.1 as far as a load generator needs it: one request at a time, bodies by length or in chunks, events.

A general client costs several times as much CPU a token, and the generator's own cost bounds the load that it can make.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator

from deltaserve.bench.wire import AnswerError

_IDLE_SECONDS = 2.0  # servers close idle connections after five seconds or more; a request must not meet that


class Connection:
    """One connection; `post` or `get`, then `body` or `events` to their end, then the next request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host
        self._length: int | None = None  # of the body; None: chunked
        self.idle_since = 0.0
        self.status = 0
        self.keeps = True

    async def post(self, path: str, body: bytes) -> None:
        """Sends JSON and reads the answer's head."""
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        await self._exchange(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def get(self, path: str) -> None:
        """Asks for a path and reads the answer's head."""
        await self._exchange(f"GET {path} HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode())

    async def body(self) -> AsyncIterator[bytes]:
        """Yields the body part by part."""
        try:
            if self._length is not None:
                yield await self._reader.readexactly(self._length)
                return
            while size := int((await self._reader.readline()).split(b";")[0], 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            while await self._reader.readline() not in {b"\r\n", b""}:  # trailers
                pass
        except (ValueError, asyncio.IncompleteReadError):
            raise AnswerError("truncated body") from None

    async def events(self) -> AsyncIterator[bytes]:
        """Yields the data of server-sent events, each of one line."""
        rest = b""
        async for part in self.body():
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                if event.startswith(b"data: "):
                    yield event[6:]

    def usable(self) -> bool:
        """Whether another request may go here."""
        fresh = time.monotonic() - self.idle_since < _IDLE_SECONDS
        return fresh and self.keeps and not self._writer.is_closing() and not self._reader.at_eof()

    def close(self) -> None:
        """Ends the connection at once."""
        self._writer.transport.abort()

    async def _exchange(self, request: bytes) -> None:
        self._writer.write(request)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise AnswerError("no answer") from None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        version, _, rest = first.partition(" ")
        try:
            self.status = int(rest[:3])
            self._length = None if "chunked" in headers.get("transfer-encoding", "") else int(headers["content-length"])
        except (ValueError, KeyError):
            raise AnswerError("malformed head") from None
        self.keeps = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"


class Connections:
    """Connections to one server, as many as requests are under way."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: deque[Connection] = deque()

    async def take(self) -> Connection:
        """Returns a connection that nobody else uses; raises OSError when there is none to be had."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.close()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        return Connection(reader, writer, f"{self._host}:{self._port}")

    def give(self, connection: Connection) -> None:
        """Takes a connection back whose answer was read to its end."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        """Closes the idle ones."""
        while self._idle:
            self._idle.pop().close()
