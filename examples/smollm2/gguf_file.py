"""Reads a GGUF file: metadata, and tensors dequantised to float32. numpy alone; the types that SmolLM2's file uses."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # weights

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Type:
    """How a tensor's bytes stand for values: `bytes` for every `values` of them, and the way back to float32."""

    name: str
    values: int
    bytes: int
    dequantise: Callable[[NDArray[np.uint8]], Floats]


def _f32(raw: NDArray[np.uint8]) -> Floats:
    return raw.view("<f4")


def _f16(raw: NDArray[np.uint8]) -> Floats:
    return raw.view("<f2").astype(np.float32)


def _q4_1(raw: NDArray[np.uint8]) -> Floats:
    """Blocks of d, m (fp16) and 32 nibbles, the low ones first: d · q + m."""
    blocks = raw.reshape(-1, 20)
    d, m = (blocks[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2))
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return d * codes.astype(np.float32) + m


def _q8_0(raw: NDArray[np.uint8]) -> Floats:
    """Blocks of d (fp16) and 32 signed bytes: d · q."""
    blocks = raw.reshape(-1, 34)
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return d * blocks[:, 2:].view(np.int8).astype(np.float32)


_TYPES = {
    0: Type("F32", 1, 4, _f32),
    1: Type("F16", 1, 2, _f16),
    3: Type("Q4_1", _BLOCK, 20, _q4_1),
    8: Type("Q8_0", _BLOCK, 34, _q8_0),
}


@dataclass(frozen=True)
class Gguf:
    """An opened file.

    Attributes:
        metadata: values by key.
        shapes: of tensors by name, as torch would say them: the last dimension is contiguous.
    """

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    _places: dict[str, tuple[Type, int]]
    _data: memoryview

    def tensor(self, name: str) -> Floats:
        """Returns a tensor's values, float32."""
        kind, begin = self._places[name]
        shape = self.shapes[name]
        size = prod(shape) // kind.values * kind.bytes
        raw = np.frombuffer(self._data, dtype=np.uint8, count=size, offset=begin)
        return kind.dequantise(raw).reshape(shape)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self) -> str:
        size = self.scalar("Q")
        self.at += size
        return bytes(self.data[self.at - size : self.at]).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def parse(data: bytes) -> Gguf:
    """Reads a file's contents.

    Raises:
        ValueError: no GGUF of version 2 or 3, or a tensor of a type that is not read here.
    """
    reader = _Reader(memoryview(data))
    if data[:4] != _MAGIC or int.from_bytes(data[4:8], "little") not in _VERSIONS:
        raise ValueError(f"file begins with {data[:8]!r}; expected {_MAGIC!r} and version 2 or 3")
    reader.at = 8
    tensors, keys = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(keys):
        key = reader.text()
        metadata[key] = reader.value(reader.scalar("I"))
    shapes, offsets = {}, {}
    for _ in range(tensors):
        name = reader.text()
        shapes[name] = tuple(reader.scalar("Q") for _ in range(reader.scalar("I")))[::-1]
        kind, offset = reader.scalar("I"), reader.scalar("Q")
        if kind not in _TYPES:
            raise ValueError(f"tensor {name!r} is of type {kind}; expected one of {[t.name for t in _TYPES.values()]}")
        offsets[name] = _TYPES[kind], offset
    align = metadata.get("general.alignment", 32)
    begin = -(-reader.at // align) * align
    places = {name: (kind, begin + offset) for name, (kind, offset) in offsets.items()}
    return Gguf(metadata, shapes, places, reader.data)
