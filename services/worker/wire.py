"""Frames between front and engine: a 4-byte little-endian length, then one message of `messages` as msgpack."""

from __future__ import annotations

import asyncio
import struct
from typing import Generic, TypeVar

import msgspec

from deltaserve.errors import FormatError
from services.worker.messages import FromEngine, ToEngine

MAX_FRAME_BYTES = 256 << 20

T = TypeVar("T")

_LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()


def to_engine_decoder() -> msgspec.msgpack.Decoder[ToEngine]:
    """Returns a decoder of the messages that the engine reads."""
    return msgspec.msgpack.Decoder(ToEngine)


def from_engine_decoder() -> msgspec.msgpack.Decoder[FromEngine]:
    """Returns a decoder of the messages that the front reads."""
    return msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """Returns the whole frame of a message, ready to be written."""
    payload = _ENCODER.encode(message)
    _check_length(len(payload))
    return _LENGTH.pack(len(payload)) + payload


async def read_message(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Reads one message.

    Raises:
        EOFError: the other side has gone (asyncio.IncompleteReadError is one).
        FormatError: the bytes are not a frame of a known message.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    _check_length(length)
    return _decode(await reader.readexactly(length), decoder)


class FrameBuffer(Generic[T]):
    """Cuts messages out of bytes that arrive in any pieces."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Takes `data`, returns every message that is complete; raises FormatError when the bytes are no frames."""
        self._bytes += data
        messages: list[T] = []
        begin = 0
        while len(self._bytes) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, begin)
            _check_length(length)
            end = begin + _LENGTH.size + length
            if len(self._bytes) < end:
                break
            messages.append(_decode(bytes(self._bytes[begin + _LENGTH.size : end]), self._decoder))
            begin = end
        del self._bytes[:begin]
        return messages


def _decode(payload: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"frame of {len(payload)} bytes holds no known message: {error}") from error


def _check_length(length: int) -> None:
    if length > MAX_FRAME_BYTES:
        raise FormatError(f"frame of {length} bytes; expected at most {MAX_FRAME_BYTES}")
