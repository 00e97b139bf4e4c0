"""One plane's bytes as a stream: byte-planes, each coded by rANS or stored as it is.

Byte i belongs to byte-plane i mod S. S is the element's bytes where those differ in what they hold (the high bytes of
floats repeat, the low ones do not), and 3 for 3-bit codes, whose pattern repeats after three bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deltaserve.delta.lossless import rans, tables
from deltaserve.delta.lossless.tables import Bytes, Ints, TableHeader
from deltaserve.errors import FormatError

BLOCK_BYTES = 1 << 14
LARGE_BLOCK_BYTES = 1 << 15  # half the states to store, and still blocks enough for every warp
_LARGE_PLANE = 1 << 20
VERSION = 1
MAX_STRIDE = 4
MIN_LOG_BLOCK, MAX_LOG_BLOCK = 7, 15
_RAW, _RANS = 0, 1
_PERIOD = 12  # every stride divides it
_NOTHING: Bytes = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How bytes are to be stored: a table for each byte-plane, None for one that is stored raw; and estimated bytes."""

    frequencies: tuple[Ints | None, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class _Written:
    """A byte-plane as it is stored: its descriptor, and either table and blocks or raw bytes."""

    descriptor: bytes
    table: Bytes
    blocks: rans.Coded | None
    raw: Bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """A byte-plane of a stream that is being read: its bytes, and its table when it is coded."""

    size: int
    table: TableHeader | None


def estimate(raw: Bytes, block: int | None = None) -> int:
    """Returns about how many bytes `encode` would make of uint8 [n]; costs a histogram."""
    return _plan(raw, block or _block_of(raw.size)).bytes


def encode(raw: Bytes, block: int | None = None) -> Bytes:
    """Returns the stream of some bytes; the same bytes give the same stream.

    Args:
        raw: uint8 [n], n > 0.
        block: bytes that are decoded independently, a power of two from 128 to 32768; None: 16 KiB, or 32 KiB from
            1 MiB on.

    Returns:
        uint8 [m]. m is at most n + 20: what does not shrink is stored raw.
    """
    block = block or _block_of(raw.size)
    plan = _plan(raw, block)
    stride = len(plan.frequencies)
    parts = [_code(np.ascontiguousarray(raw[number::stride]), f, block) for number, f in enumerate(plan.frequencies)]
    head = bytes([VERSION, stride, block.bit_length() - 1, 0]) + b"".join(part.descriptor for part in parts)
    blocks = [part.blocks for part in parts if part.blocks]
    ends, done = [], 0
    for coded in blocks:
        ends.append((coded.ends + done).astype("<u4"))
        done += coded.words.size
    sections = [
        *ends,
        *(c.states.astype("<u4", copy=False) for c in blocks),
        *(c.words.astype("<u2", copy=False) for c in blocks),
    ]
    return np.concatenate(
        [
            np.frombuffer(head, dtype=np.uint8),
            *(part.table for part in parts),
            *(section.reshape(-1).view(np.uint8) for section in sections),
            *(part.raw for part in parts),
        ]
    )


def _code(part: Bytes, frequencies: Ints | None, block: int) -> _Written:
    """Codes a byte-plane, unless it turns out not to shrink."""
    if frequencies is not None:
        header = tables.header_of(frequencies)
        table, blocks = tables.pack(frequencies, header), rans.encode(part, frequencies, block)
        if table.size + blocks.bytes < part.size:
            return _Written(bytes([_RANS, header.first, header.last, header.width]), table, blocks, _NOTHING)
    return _Written(bytes([_RAW, 0, 0, 0]), _NOTHING, None, part)


def decode(stream: Bytes, size: int) -> Bytes:
    """Returns the bytes that a stream was made of.

    Args:
        stream: uint8 [m].
        size: bytes that it must hold, known from elsewhere; the stream itself does not say.

    Returns:
        uint8 [size].

    Raises:
        FormatError: anything malformed. Time and memory are bounded: a stream has 132 bytes at least for each block of
            what it holds, which is checked before anything of that size is made.
    """
    reader = _Reader(stream)
    stride, block, kinds = _read_head(reader)
    parts = [_Part(_part_size(size, number, stride), table) for number, table in enumerate(kinds)]
    if parts[-1].size < 1:
        raise FormatError(f"lossless stream: {stride} byte-planes for {size} bytes; expected no empty ones")
    frequencies = [tables.unpack(reader.take(p.table.bytes), p.table) for p in parts if p.table]
    counts = [rans.blocks_of(part.size, block) for part in parts if part.table]
    ends = reader.take(4 * sum(counts)).copy().view("<u4").astype(np.int64)
    states = reader.take(4 * rans.LANES * sum(counts)).copy().view("<u4").reshape(-1, rans.LANES)
    words = reader.take(2 * int(ends[-1]) if ends.size else 0).copy().view("<u2")
    left = reader.left - sum(part.size for part in parts if not part.table)
    if left:
        raise FormatError(
            f"lossless stream of {stream.size} bytes: {abs(left)} {'too many' if left > 0 else 'missing'}"
        )
    decoded = _decode_parts(frequencies, counts, rans.Coded(ends, states, words), parts, block)
    if stride == 1:
        return next(decoded) if parts[0].table else reader.take(size).copy()
    raw = np.empty(size, dtype=np.uint8)
    for number, part in enumerate(parts):
        raw[number::stride] = next(decoded) if part.table else reader.take(part.size)
    return raw


class _Reader:
    """Takes a stream's sections one after another."""

    def __init__(self, stream: Bytes) -> None:
        self._stream = stream
        self._at = 0

    @property
    def left(self) -> int:
        return self._stream.size - self._at

    def take(self, size: int) -> Bytes:
        if size > self.left:
            raise FormatError(
                f"lossless stream of {self._stream.size} bytes ends early: {size} more expected after {self._at}"
            )
        self._at += size
        return self._stream[self._at - size : self._at]


def _read_head(reader: _Reader) -> tuple[int, int, list[TableHeader | None]]:
    """Returns stride, bytes of a block, and the table of each byte-plane."""
    version, stride, log_block, reserved = (int(value) for value in reader.take(4))
    if version != VERSION or reserved:
        raise FormatError(f"lossless stream says version {version}.{reserved}; expected {VERSION}.0")
    if not (1 <= stride <= MAX_STRIDE and MIN_LOG_BLOCK <= log_block <= MAX_LOG_BLOCK):
        raise FormatError(
            f"lossless stream has {stride} byte-planes in blocks of 2^{log_block} bytes; expected 1 … {MAX_STRIDE} "
            f"and {MIN_LOG_BLOCK} … {MAX_LOG_BLOCK}"
        )
    kinds: list[TableHeader | None] = []
    for kind, first, last, width in reader.take(4 * stride).reshape(-1, 4).tolist():
        if kind == _RAW and not (first or last or width):
            kinds.append(None)
        elif kind == _RANS and first <= last and 1 <= width <= tables.PROBABILITY_BITS:
            kinds.append(TableHeader(first, last, width))
        else:
            raise FormatError(f"lossless stream: no byte-plane is described by {[kind, first, last, width]}")
    return stride, 1 << log_block, kinds


def _decode_parts(
    frequencies: list[Ints], counts: list[int], coded: rans.Coded, parts: list[_Part], block: int
) -> Iterator[Bytes]:
    """Yields the coded byte-planes one by one."""
    sizes = [part.size for part in parts if part.table]
    begin = word = 0
    for table, count, size in zip(frequencies, counts, sizes, strict=True):
        ends = coded.ends[begin : begin + count]
        own = rans.Coded(ends - word, coded.states[begin : begin + count], coded.words[word : max(word, int(ends[-1]))])
        yield rans.decode(own, table, size, block)
        begin, word = begin + count, int(ends[-1])


def _block_of(size: int) -> int:
    return LARGE_BLOCK_BYTES if size >= _LARGE_PLANE else BLOCK_BYTES


def _part_size(size: int, number: int, stride: int) -> int:
    """Returns the bytes of one of `stride` byte-planes; 0 or less when there are not so many bytes."""
    return -(-(size - number) // stride)


def _plan(raw: Bytes, block: int) -> _Plan:
    """Returns the plan of fewest bytes; of equals, the one of fewest byte-planes."""
    counts = np.stack([np.bincount(raw[phase::_PERIOD], minlength=tables.SYMBOLS) for phase in range(_PERIOD)])
    plans = [_plan_stride(counts, raw.size, stride, block) for stride in range(1, min(MAX_STRIDE, raw.size) + 1)]
    return min(plans, key=lambda plan: (plan.bytes, len(plan.frequencies)))


def _plan_stride(counts: Ints, size: int, stride: int, block: int) -> _Plan:
    chosen: list[Ints | None] = []
    total = 4 + 4 * stride
    for number in range(stride):
        own = counts[number::stride].sum(0)
        raw = _part_size(size, number, stride)
        frequencies = tables.normalise(own)
        blocks = rans.blocks_of(raw, block)
        # of the states one byte a lane stands for symbols, on average
        words = max(0, tables.coded_bytes(own, frequencies) - blocks * rans.LANES)
        coded = tables.header_of(frequencies).bytes + blocks * rans.BLOCK_OVERHEAD + words
        chosen.append(frequencies if coded < raw else None)
        total += min(coded, raw)
    return _Plan(tuple(chosen), total)
