"""Bytes of every kind that a plane may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from deltaserve.delta.lossless.tables import Bytes

Source = Callable[[np.random.Generator, int], Bytes]


def _floats(dtype: str) -> Source:
    def make(random: np.random.Generator, size: int) -> Bytes:
        return random.standard_normal(size // np.dtype(dtype).itemsize + 1).astype(dtype).view(np.uint8)[:size]

    return make


def _codes(bits: int) -> Source:
    def make(random: np.random.Generator, size: int) -> Bytes:
        levels = 1 << bits
        values = random.standard_normal(size * 8 // bits + 1) * levels / 5 + levels / 2
        codes = np.clip(np.floor(values), 0, levels - 1).astype(np.uint8)
        digits = np.unpackbits(codes[:, None], axis=1, bitorder="little", count=bits).reshape(-1)
        return np.packbits(digits, bitorder="little")[:size]

    return make


def _bfloat16(random: np.random.Generator, size: int) -> Bytes:
    words = random.standard_normal(size // 2 + 1).astype(np.float32).view(np.uint16)[1::2]
    return np.ascontiguousarray(words).view(np.uint8)[:size]


SOURCES: Mapping[str, Source] = {
    "random": lambda random, size: random.integers(0, 256, size, dtype=np.uint8),
    "zero": lambda _, size: np.zeros(size, dtype=np.uint8),
    "constant": lambda _, size: np.full(size, 255, dtype=np.uint8),
    "nearly constant": lambda random, size: (random.random(size) < 1e-3).astype(np.uint8) * 200,
    "two symbols": lambda random, size: np.where(random.random(size) < 0.3, 7, 250).astype(np.uint8),
    "skewed": lambda random, size: np.minimum(random.geometric(0.2, size), 255).astype(np.uint8),
    "runs": lambda random, size: np.repeat(random.integers(0, 256, size // 500 + 1, dtype=np.uint8), 500)[:size],
    "2-bit codes": _codes(2),
    "3-bit codes": _codes(3),
    "4-bit codes": _codes(4),
    "float16": _floats("<f2"),
    "bfloat16": _bfloat16,
    "float32": _floats("<f4"),
}


def entropy_bytes(data: Bytes) -> float:
    """Bytes at the order-0 entropy of bytes."""
    counts = np.bincount(data, minlength=256)
    shares = counts[counts > 0] / data.size
    return float(-(shares * np.log2(shares)).sum()) * data.size / 8
