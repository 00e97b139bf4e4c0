"""Requests over the OpenAI-compatible HTTP API: streamed completions, of ours or of another server."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from deltaserve.bench.http_connection import Connection, Connections
from deltaserve.bench.recorder import Recorder
from deltaserve.bench.wire import AnswerError
from deltaserve.bench.workload import Planned
from deltaserve.errors import InvalidArgumentError

_MOST_ERROR_BYTES = 1 << 20


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_EVENTS = msgspec.json.Decoder(_Event)


class HttpWire:
    """Connections to one server; each carries one request at a time and is used again."""

    def __init__(self, url: str) -> None:
        """Takes `http://host:port[/v1]`; raises InvalidArgumentError for anything else."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidArgumentError(f"{url!r} is no address; expected http://HOST:PORT", field="http")
        self._path = f"{parts.path.rstrip('/').removesuffix('/v1')}/v1"
        self._connections = Connections(parts.hostname, parts.port or 80)

    async def open(self) -> None:
        """Makes a connection."""
        self._connections.give(await self._connections.take())

    async def ask(self, planned: Planned, recorder: Recorder) -> None:
        """Streams one completion; see Wire. A frame is an event with text; tokens are those of `usage`."""
        body = {
            "model": planned.model,
            "prompt": planned.prompt,
            "max_tokens": planned.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if planned.min_tokens:
            body["min_tokens"] = planned.min_tokens
        if planned.ignore_eos:
            body["ignore_eos"] = True
        connection = await self._connections.take()
        whole = False
        try:
            await connection.post(f"{self._path}/completions", msgspec.json.encode(body))
            whole = await _follow(connection, recorder)
        finally:
            if whole:
                self._connections.give(connection)
            else:  # closing is how a client of HTTP leaves
                connection.close()

    async def models(self) -> list[str]:
        """Returns what `/v1/models` lists, without revisions that are named besides."""
        connection = await self._connections.take()
        try:
            await connection.get(f"{self._path}/models")
            body = b"".join([part async for part in connection.body()])
        finally:
            connection.close()
        if connection.status != 200:
            raise AnswerError(f"HTTP {connection.status}")
        return [model.id for model in msgspec.json.decode(body, type=_Models).data if "@" not in model.id]

    async def close(self) -> None:
        """Closes idle connections; busy ones belong to their requests."""
        self._connections.close()


async def _follow(connection: Connection, recorder: Recorder) -> bool:
    """Reads an answer; returns whether it was read to its end."""
    if connection.status != 200:
        await _skip(connection)
        raise AnswerError(f"HTTP {connection.status}")
    seen = done = False
    async for data in connection.events():
        if data == b"[DONE]":
            done = True
            continue
        event = _decode(data)
        # an answer without any text, such as special tokens only, has its first token when it ends
        if any(choice.text or (choice.finish_reason and not seen) for choice in event.choices):
            seen = True
            if recorder.tokens(1):
                return False
        if event.usage is not None:
            recorder.told(event.usage.prompt_tokens, event.usage.completion_tokens)
    if not done:
        raise AnswerError("truncated stream")
    return True


async def _skip(connection: Connection) -> None:
    """Reads an error's body."""
    size = 0
    async for part in connection.body():
        size += len(part)
        if size > _MOST_ERROR_BYTES:
            return


def _decode(data: bytes) -> _Event:
    try:
        event = _EVENTS.decode(data)
    except msgspec.DecodeError:
        raise AnswerError("malformed event") from None
    if event.error is not None:
        raise AnswerError(f"in the stream: {event.error.code or event.error.type or 'error'}")
    return event
