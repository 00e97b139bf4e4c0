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
class BytePlane:
    """Where a byte-plane lies in a stream.

    Attributes:
        size: its bytes when decoded.
        table: of a coded one; None: it is stored raw.
        at: offset of the packed table, or of the raw bytes.
        before: blocks of the byte-planes before it.
        blocks: its own, 0 when raw.
    """

    size: int
    table: TableHeader | None
    at: int
    before: int
    blocks: int


@dataclass(frozen=True, slots=True)
class StreamLayout:
    """Where the sections of a stream lie.

    Attributes:
        block: bytes that are decoded independently.
        planes: the byte-planes in order.
        ends_at, states_at, words_at: offsets of u32 [B], u32 [B, 32] and u16 [W] of all B blocks.
    """

    block: int
    planes: tuple[BytePlane, ...]
    ends_at: int
    states_at: int
    words_at: int


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
    layout = read_layout(stream, size)
    planes = layout.planes
    count = sum(plane.blocks for plane in planes)
    ends = _section(stream, layout.ends_at, 4 * count).view("<u4").astype(np.int64)
    states = _section(stream, layout.states_at, 4 * rans.LANES * count).view("<u4").reshape(-1, rans.LANES)
    words = _section(stream, layout.words_at, 2 * int(ends[-1]) if count else 0).view("<u2")
    decoded = _decode_planes(stream, layout, rans.Coded(ends, states, words))
    if len(planes) == 1:
        return next(decoded) if planes[0].table else _section(stream, planes[0].at, size)
    raw = np.empty(size, dtype=np.uint8)
    for number, plane in enumerate(planes):
        raw[number :: len(planes)] = next(decoded) if plane.table else stream[plane.at : plane.at + plane.size]
    return raw


def read_layout(stream: Bytes, size: int) -> StreamLayout:
    """Returns where a stream's sections lie, having checked all that can be checked without decoding.

    Raises:
        FormatError: as `decode`, but for damage within tables and blocks.
    """
    reader = _Reader(stream)
    stride, block, kinds = _read_head(reader)
    sizes = [_part_size(size, number, stride) for number in range(stride)]
    if sizes[-1] < 1:
        raise FormatError(f"lossless stream: {stride} byte-planes for {size} bytes; expected no empty ones")
    tables_at = [reader.skip(table.bytes) if table else 0 for table in kinds]
    counts = [rans.blocks_of(part, block) if table else 0 for part, table in zip(sizes, kinds, strict=True)]
    count = sum(counts)
    ends_at = reader.skip(4 * count)
    states_at = reader.skip(4 * rans.LANES * count)
    last = int(_section(stream, states_at - 4, 4).view("<u4")[0]) if count else 0
    words_at = reader.skip(2 * last)
    raw_at = [reader.at] * stride
    for number in range(1, stride):
        raw_at[number] = raw_at[number - 1] + (0 if kinds[number - 1] else sizes[number - 1])
    left = reader.left - sum(part for part, table in zip(sizes, kinds, strict=True) if not table)
    if left:
        raise FormatError(
            f"lossless stream of {stream.size} bytes: {abs(left)} {'too many' if left > 0 else 'missing'}"
        )
    planes = tuple(
        BytePlane(sizes[n], table, tables_at[n] if table else raw_at[n], sum(counts[:n]), counts[n])
        for n, table in enumerate(kinds)
    )
    return StreamLayout(block, planes, ends_at, states_at, words_at)


def _section(stream: Bytes, at: int, size: int) -> Bytes:
    """Returns a copy, aligned for wider types."""
    return stream[at : at + size].copy()


class _Reader:
    """Takes a stream's sections one after another."""

    def __init__(self, stream: Bytes) -> None:
        self._stream = stream
        self._at = 0

    @property
    def left(self) -> int:
        return self._stream.size - self._at

    @property
    def at(self) -> int:
        return self._at

    def skip(self, size: int) -> int:
        """Returns where a section of `size` bytes begins."""
        if size > self.left:
            raise FormatError(
                f"lossless stream of {self._stream.size} bytes ends early: {size} more expected after {self._at}"
            )
        self._at += size
        return self._at - size

    def take(self, size: int) -> Bytes:
        begin = self.skip(size)
        return self._stream[begin : self._at]


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


def _decode_planes(stream: Bytes, layout: StreamLayout, coded: rans.Coded) -> Iterator[Bytes]:
    """Yields the coded byte-planes one by one."""
    word = 0
    for plane in layout.planes:
        if plane.table is None:
            continue
        frequencies = tables.unpack(stream[plane.at : plane.at + plane.table.bytes], plane.table)
        picked = slice(plane.before, plane.before + plane.blocks)
        ends = coded.ends[picked]
        own = rans.Coded(ends - word, coded.states[picked], coded.words[word : max(word, int(ends[-1]))])
        yield rans.decode(own, frequencies, plane.size, layout.block)
        word = int(ends[-1])


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
