"""What the front and the process that renders chat templates say to each other: frames of msgpack over two pipes."""

from __future__ import annotations

import struct
from typing import IO

import msgspec

CPU_SECONDS = 1.0  # of one compilation with one rendering; templates in use take some 0.0002
MEMORY_BYTES = 256 << 20  # beyond what the process has at its start
MAX_CHARACTERS = 16 << 20  # of a rendered conversation
_LENGTH = struct.Struct("<I")


class Render(msgspec.Struct, frozen=True, kw_only=True):
    """Compile a template and, unless `messages` is None, render it."""

    source: str
    special_tokens: dict[str, str]
    messages: list[dict[str, str]] | None
    add_generation_prompt: bool = False


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """The text; or why the source is no template; or why the template refuses the conversation."""

    text: str = ""
    malformed: str = ""
    refused: str = ""


def write_frame(file: IO[bytes], data: bytes) -> None:
    """Writes one frame. Raises BrokenPipeError."""
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def read_frame(file: IO[bytes]) -> bytes | None:
    """Reads one frame; None when the other side has gone."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    return data if len(data) == length else None
