"""gRPC calls by hand over HTTP/2: a client so cheap that the router is what is measured, not the client.

Only what a server-streaming call needs: one message up, messages down, whose bytes are counted and not parsed; windows
so large that they never close.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import cast

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_LARGEST_WINDOW = (1 << 31) - 1
_HEAD = 9  # bytes of a frame's header

OnData = Callable[[bytes], None]


class Connection(asyncio.Protocol):
    """One connection; made by `connect`."""

    def __init__(self, authority: str) -> None:
        self._authority = authority.encode()
        self._streams: dict[int, tuple[OnData, asyncio.Future[None]]] = {}
        self._next = 1
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello."""
        self._transport = write = cast("asyncio.WriteTransport", transport)  # uvloop's is none by inheritance
        settings = struct.pack(">HIHI", 2, 0, 4, _LARGEST_WINDOW)  # no push, large windows
        window = struct.pack(">I", _LARGEST_WINDOW - 65_535)
        write.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, window))

    def connection_lost(self, error: Exception | None) -> None:
        """Fails what still runs."""
        for _, done in self._streams.values():
            if not done.done():
                done.set_exception(ConnectionError(f"the connection was lost: {error}"))

    def call(self, path: str, message: bytes, on_data: OnData) -> asyncio.Future[None]:
        """Begins a call; the future is done when the stream has ended, however it did."""
        assert self._transport is not None
        stream, self._next = self._next, self._next + 2
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._streams[stream] = (on_data, done)
        headers = b"\x83\x86" + b"".join((
            _literal(b"\x04", path.encode()), _literal(b"\x01", self._authority),
            b"\x00" + _text(b"content-type") + _text(b"application/grpc"), b"\x00" + _text(b"te") + _text(b"trailers"),
        ))  # fmt: skip
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, stream, headers) + _frame(_DATA, _END_STREAM, stream, body)
        )
        return done

    def close(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Takes whole frames apart and keeps the rest."""
        data, at = self._buffer + data, 0
        while len(data) - at >= _HEAD:
            size = int.from_bytes(data[at : at + 3], "big")
            end = at + _HEAD + size
            if end > len(data):
                break
            self._take(data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + _HEAD : end])
            at = end
        self._buffer = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA:
            self._streams[stream][0](payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self._transport.close()
        if kind == _RESET or (kind in {_DATA, _HEADERS} and flags & _END_STREAM):
            _, done = self._streams.pop(stream, (None, None))
            if done is not None and not done.done():
                done.set_result(None)


async def connect(address: str) -> Connection:
    """Opens a connection to host:port."""
    host, _, port = address.rpartition(":")
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(address), host, int(port))
    return connection


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: bytes, value: bytes) -> bytes:
    return name + _text(value)


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes((len(value),)) + value
