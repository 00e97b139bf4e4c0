"""Writer of safetensors files: bytes streamed in a fixed order, whole or not at all, the same input the same file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deltaserve.files import publish, temp_beside

_ALIGNMENT = 64

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor to write: name, safetensors dtype, shape, size in bytes, and what yields its bytes in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    blocks: Callable[[], Iterable[Buffer]]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """Size in bytes and sha256 of a file that was written."""

    size: int
    sha256: str


def write_file(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> WrittenFile:
    """Writes a safetensors file with its tensors in the given order, replacing what was there atomically.

    The header is padded so that the first tensor begins on a multiple of 64 bytes.
    """
    temp = temp_beside(path)
    digest = hashlib.sha256()
    try:
        with temp.open("wb") as file:
            size = _put(file, digest.update, [_header(pieces, metadata)])
            for piece in pieces:
                written = _put(file, digest.update, piece.blocks())
                if written != piece.size:
                    raise ValueError(f"tensor {piece.name!r} gave {written} bytes; {piece.size} were announced")
                size += written
        publish(temp, path)
    finally:
        with suppress(FileNotFoundError):
            temp.unlink()
    return WrittenFile(size, digest.hexdigest())


def _put(file: BinaryIO, update: Callable[[Buffer], None], blocks: Iterable[Buffer]) -> int:
    written = 0
    for block in blocks:
        update(block)
        written += file.write(block)
    return written


def _header(pieces: Sequence[Piece], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for piece in pieces:
        end = position + piece.size
        fields[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
