"""Completions over HTTP against servers that behave, and that do not."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from deltaserve.bench.http_wire import HttpWire
from deltaserve.bench.records import CANCELLED, OK, Record
from deltaserve.bench.runner import drive
from deltaserve.bench.wire import AnswerError
from deltaserve.bench.workload import Planned
from deltaserve.errors import InvalidArgumentError

Handle = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Speaks HTTP/1.1 by hand, so that a test decides every byte and where it is cut."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.connections = 0
        self.left = 0
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(int(line[15:]) for line in head.splitlines() if line.startswith("content-length:"))
                body = json.loads(await reader.readexactly(length))
                assert head.startswith("POST /v1/completions HTTP/1.1\r\n")
                self.bodies.append(body)
                await self.handle(body, writer)
                if writer.is_closing():
                    break
        self.left += 1
        writer.close()


@contextlib.asynccontextmanager
async def server(handle: Handle) -> AsyncIterator[Server]:
    made = Server(handle)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        listening.close()


def events(tokens: int, *, done: bool = True) -> bytes:
    parts: list[Any] = [{"choices": [{"text": f" w{i}", "finish_reason": None}]} for i in range(tokens)]
    parts.append({"choices": [{"text": "", "finish_reason": "length"}]})
    parts.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens + 1}})
    data = b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts)
    return data + b"data: [DONE]\n\n" if done else data


def chunked(data: bytes) -> bytes:
    """Cuts a body anywhere."""
    body = b""
    while data:
        size = random.randint(1, 60)
        body += f"{len(data[:size]):x}\r\n".encode() + data[:size] + b"\r\n"
        data = data[size:]
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


async def answer(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(chunked(events(body["max_tokens"])))


async def send(url: str, planned: list[Planned], timeout_seconds: float = 60.0) -> list[Record]:
    wire = HttpWire(url)
    try:
        return (await drive(planned, wire, time.monotonic(), timeout_seconds)).records
    finally:
        await wire.close()


async def test_events_are_tokens_wherever_chunks_are_cut() -> None:
    async with server(answer) as to:
        planned = [Planned(i / 100, "m", [1, 2], random.randint(1, 20), 1, True) for i in range(20)]
        records = await send(f"{to.url}/v1/", planned)
    for request, record in zip(planned, records, strict=True):
        assert (record.status, record.prompt_tokens) == (OK, 3)
        assert len(record.times) == request.max_tokens
        assert record.output_tokens == request.max_tokens + 1  # as the server counts
    expected = {"model", "prompt", "max_tokens", "min_tokens", "ignore_eos", "stream", "stream_options"}
    assert to.bodies[0].keys() == expected
    assert to.connections < 20  # some were used again


async def test_plain_requests_have_plain_bodies() -> None:
    async with server(answer) as to:
        await send(to.url, [Planned(0.0, "m", "text", 2)])
    assert to.bodies == [{"model": "m", "prompt": "text", "max_tokens": 2, "stream": True,
                          "stream_options": {"include_usage": True}}]  # fmt: skip


async def test_an_answer_without_text_has_its_first_token_at_its_end() -> None:
    async with server(answer) as to:

        async def silent(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
            writer.write(chunked(events(0)))

        to.handle = silent
        (record,) = await send(to.url, [Planned(0.0, "m", "p", 1)])
    assert (record.status, record.output_tokens, len(record.times)) == (OK, 1, 1)


async def test_leaving_closes_the_connection() -> None:
    async def slowly(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        head, _, rest = chunked(events(50)).partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n" + rest[: len(rest) // 2])
        await writer.drain()
        await asyncio.sleep(0.05)

    async with server(slowly) as to:
        (record,) = await send(to.url, [Planned(0.0, "m", "p", 50, cancel_after=5)])
        assert (record.status, record.output_tokens) == (CANCELLED, 5)
        async with asyncio.timeout(5):
            while not to.left:
                await asyncio.sleep(0.01)


BAD = {
    "HTTP 404": b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
    "HTTP 503": b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "malformed head": b"HTTP/1.1 200 OK\r\n\r\n",
    "malformed event": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\ndata: {]\n\n",
    "truncated stream": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "in the stream: worker_lost": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    b'data: {"error": {"code": "worker_lost"}}\n\n',
}


@pytest.mark.parametrize("status", BAD)
async def test_bad_answers_are_counted_by_what_they_are(status: str) -> None:
    data = BAD[status]
    head, _, body = data.partition(b"\r\n\r\n")
    if b"content-length" in head:
        head = head.rpartition(b" ")[0] + f" {len(body)}".encode()

    async def bad(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"\r\n\r\n" + body)

    async with server(bad) as to:
        records = await send(to.url, [Planned(i / 50, "m", "p", 5) for i in range(3)])
    assert [r.status for r in records] == [status] * 3


@pytest.mark.parametrize(("data", "status"), [
    (b"", "no answer"),
    (b"HTTP/1.1 200", "no answer"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ndata", "truncated body"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nda", "truncated body"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "truncated body"),
])  # fmt: skip
async def test_broken_connections(data: bytes, status: str) -> None:
    async def broken(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    async with server(broken) as to:
        (record,) = await send(to.url, [Planned(0.0, "m", "p", 5)])
    assert record.status == status


async def test_who_is_not_there_and_who_is_slow() -> None:
    async with server(answer) as to:
        url = to.url

        async def never(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)

        to.handle = never
        (record,) = await send(url, [Planned(0.0, "m", "p", 5)], 0.2)
        assert record.status == "TIMEOUT"
    (record,) = await send("http://127.0.0.1:9", [Planned(0.0, "m", "p", 5)])
    assert record.status == "ConnectionRefusedError"


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    async def close_after(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await answer(body, writer)
        writer.close()

    async with server(close_after) as to:
        records = await send(to.url, [Planned(i / 10, "m", "p", 2) for i in range(5)])
        assert [r.status for r in records] == [OK] * 5
        assert to.connections == 5


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "https://example.org", "http://", ""])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="http://HOST:PORT"):
        HttpWire(url)


async def test_models_of_a_server_that_has_none() -> None:
    async def not_found(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    listening = await asyncio.start_server(not_found, "127.0.0.1", 0)
    wire = HttpWire(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    with pytest.raises(AnswerError, match="HTTP 404"):
        await wire.models()
    listening.close()
