"""Frequency tables of rANS: from counts to 12-bit frequencies, and to the bytes that store them.

Integer arithmetic throughout, so that the same counts give the same table everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltaserve.errors import FormatError

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
SYMBOLS = 256
_COST_BITS = 16

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# bits that a symbol of each frequency takes, in 1/65536 bit; of none: more than any that occurs
_COST: Ints = np.array(
    [1 << 24, *(round(-math.log2(f / TOTAL) * (1 << _COST_BITS)) for f in range(1, TOTAL + 1))], dtype=np.int64
)


@dataclass(frozen=True, slots=True)
class TableHeader:
    """How a table is stored: frequencies of the symbols `first` … `last`, `width` bits each."""

    first: int
    last: int
    width: int

    @property
    def bytes(self) -> int:
        """Bytes of the packed frequencies, a multiple of 4."""
        return -(-(self.last - self.first + 1) * self.width // 32) * 4


def normalise(counts: Ints) -> Ints:
    """Returns frequencies that sum to 4096, at least 1 for every symbol that occurs and at most 4095.

    Args:
        counts: int64 [256], how often each symbol occurs; not all zero.

    Returns:
        int64 [256]. Rounded shares, then moved one by one where it costs least until the sum is right.
    """
    present = counts > 0
    if present.sum() == 1:  # 4096 would not fit 12 bits; the neighbour that never occurs takes 1
        symbol = int(np.flatnonzero(present)[0])
        counts = counts.copy()
        counts[symbol ^ 1], present[symbol ^ 1] = 1, True
        counts[symbol] = max(counts[symbol], TOTAL)
    total = int(counts.sum())
    frequencies = np.where(present, np.maximum((counts * TOTAL + total // 2) // total, 1), 0)
    while (missing := TOTAL - int(frequencies.sum())) > 0:
        gain = counts * (_COST[frequencies] - _COST[np.minimum(frequencies + 1, TOTAL)])
        frequencies[np.argmax(np.where(present, gain, -1))] += min(missing, 1)
    while frequencies.sum() > TOTAL:
        loss = counts * (_COST[np.maximum(frequencies - 1, 1)] - _COST[frequencies])
        frequencies[np.argmin(np.where(frequencies > 1, loss, np.iinfo(np.int64).max))] -= 1
    return frequencies


def coded_bytes(counts: Ints, frequencies: Ints) -> int:
    """Returns the bytes that symbols of these counts take under a table, headers and states aside; rounded up."""
    return -(-int((counts * np.where(counts > 0, _COST[frequencies], 0)).sum()) // (8 << _COST_BITS))


def header_of(frequencies: Ints) -> TableHeader:
    """Returns the narrowest way to store a table."""
    present = np.flatnonzero(frequencies)
    return TableHeader(int(present[0]), int(present[-1]), int(frequencies.max()).bit_length())


def pack(frequencies: Ints, header: TableHeader) -> Bytes:
    """Returns a table's frequencies as bits, least significant first, filled up with zeros to a multiple of 4 bytes."""
    values = frequencies[header.first : header.last + 1, None]
    bits = np.zeros(header.bytes * 8, dtype=np.uint8)
    bits[: values.size * header.width] = ((values >> np.arange(header.width)) & 1).reshape(-1)
    return np.packbits(bits, bitorder="little")


def unpack(data: Bytes, header: TableHeader) -> Ints:
    """Returns the frequencies that `pack` stored; raises FormatError when they are no table."""
    count = header.last - header.first + 1
    bits = np.unpackbits(data, bitorder="little").astype(np.int64)
    used = count * header.width
    if bits[used:].any():
        raise FormatError("lossless stream: the bits that fill up a frequency table are set; expected zeros")
    frequencies = np.zeros(SYMBOLS, dtype=np.int64)
    frequencies[header.first : header.last + 1] = (
        bits[:used].reshape(count, header.width) << np.arange(header.width)
    ).sum(1)
    if (total := int(frequencies.sum())) != TOTAL or int(frequencies.max()) == TOTAL:
        raise FormatError(
            f"lossless stream: frequencies sum to {total}, the largest is {int(frequencies.max())}; "
            f"expected {TOTAL} and less than that"
        )
    return frequencies
