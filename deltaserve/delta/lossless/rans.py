"""Interleaved rANS over blocks of bytes: 32 lanes a block, one shared stream of 16-bit words a block.

The idea is that of GPU coders such as DietGPU: one warp decodes one block, a lane of the warp being a lane of the
coder. After each symbol the lanes whose state fell below 2^15 take one word each, in order of lanes, so that a warp's
reads are one coalesced access that a ballot and a population count address. Here the same steps are taken for all lanes
of many blocks at once with numpy. Source: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540).

Byte 128·i + 4·l + j of a block is symbol 4·i + j of lane l: a lane decodes four neighbours in a row and a warp stores
128 bytes at once. A block's last symbols are filled up to a multiple of 128 with the likeliest one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltaserve.delta.lossless.tables import PROBABILITY_BITS, SYMBOLS, TOTAL, Bytes, Ints
from deltaserve.errors import FormatError

LANES = 32
GROUP = 4  # neighbouring bytes that one lane codes
ROW = LANES * GROUP
BLOCK_OVERHEAD = 4 + 4 * LANES  # bytes of a block's end and states
STATE_MIN = 1 << 15  # a state is 2^15 … 2^31 − 1, so that signed and unsigned 32-bit arithmetic agree
_STATE_BITS = 31
_WORD_BITS = 16
_BATCH_BYTES = 16 << 20  # worked on at once: lanes enough to hide numpy's cost a call, few enough for the cache

Words = npt.NDArray[np.uint16]
States = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Coded:
    """Coded blocks.

    Attributes:
        ends: int64 [B], words of all blocks up to and including each.
        states: uint32 [B, 32], with which decoding begins.
        words: uint16 [ends[-1]].
    """

    ends: Ints
    states: States
    words: Words

    @property
    def bytes(self) -> int:
        """Bytes that they take in a stream."""
        return self.ends.size * BLOCK_OVERHEAD + self.words.nbytes


def blocks_of(size: int, block: int) -> int:
    """Returns the blocks of `size` bytes."""
    return -(-size // block)


def encode(data: Bytes, frequencies: Ints, block: int) -> Coded:
    """Codes bytes.

    Args:
        data: uint8 [n], n > 0.
        frequencies: int64 [256], from `tables.normalise`; not zero for what occurs in `data`.
        block: bytes of a block, a multiple of 128.
    """
    filler = np.full(-data.size % ROW, np.argmax(frequencies), dtype=np.uint8)
    ends, states, words, done = [], [], [], 0
    for begin, end in _batches(data.size, block):
        part = np.concatenate([data[begin:end], filler]) if end == data.size else data[begin:end]
        rows = part.reshape(-(-part.size // block), -1, LANES, GROUP)
        coded = _encode_batch(
            np.ascontiguousarray(rows.transpose(1, 3, 0, 2)).reshape(-1, rows.shape[0], LANES), frequencies
        )
        ends.append(coded.ends + done)
        states.append(coded.states)
        words.append(coded.words)
        done += coded.words.size
    return Coded(np.concatenate(ends), np.concatenate(states), np.concatenate(words))


def decode(coded: Coded, frequencies: Ints, size: int, block: int) -> Bytes:
    """Returns the `size` bytes that were coded.

    Args:
        coded: `blocks_of(size, block)` blocks; their ends must not exceed the words.
        frequencies: int64 [256], summing to 4096, each at most 4095.
        size: bytes to decode.
        block: bytes of a block, a multiple of 128.

    Raises:
        FormatError: a state out of range, or blocks that do not end where they must: words left over or missing, or a
            state that is not the one that encoding began with. The work is bounded by `size` whatever the words are.
    """
    if coded.states.min() < STATE_MIN or coded.states.max() >> _STATE_BITS:
        raise FormatError(f"lossless stream: a state is not in {STATE_MIN} … 2^{_STATE_BITS} − 1")
    begins = np.concatenate([np.zeros(1, dtype=np.int64), coded.ends[:-1]])
    if (coded.ends < begins).any() or ((coded.ends - begins) > block).any():
        raise FormatError(f"lossless stream: a block ends before it begins or has more than {block} words")
    table = _decoding_table(frequencies)
    out = np.empty(-(-size // ROW) * ROW, dtype=np.uint8)
    for begin, end in _batches(size, block):
        picked = slice(begin // block, blocks_of(end, block))
        words = coded.words[begins[picked][0] : coded.ends[picked][-1]]
        target = out[begin : -(-end // ROW) * ROW].reshape(picked.stop - picked.start, -1, LANES, GROUP)
        offset = begins[picked][0]
        _decode_batch(coded.states[picked], words, begins[picked] - offset, coded.ends[picked] - offset, table, target)
    return out[:size]


def _batches(size: int, block: int) -> list[tuple[int, int]]:
    """Returns runs of bytes of whole blocks, and the last block by itself when it is a shorter one."""
    whole = size // block * block
    step = max(1, _BATCH_BYTES // block) * block
    runs = [(begin, min(begin + step, whole)) for begin in range(0, whole, step)]
    return [*runs, (whole, size)] if whole < size else runs


def _encode_batch(symbols: Bytes, frequencies: Ints) -> Coded:
    """Codes symbols uint8 [steps, B, 32], last step first, so that decoding meets them in order."""
    steps, count, lanes = symbols.shape
    frequency = frequencies.astype(np.uint32)
    start = (np.cumsum(frequencies) - frequencies).astype(np.uint32)
    limit = frequency << np.uint32(_STATE_BITS - PROBABILITY_BITS)  # from here on a word must go first
    states = np.full(count * lanes, STATE_MIN, dtype=np.uint32)
    room = steps * lanes
    words = np.empty(count * room, dtype=np.uint16)  # each block's words grow from its end downwards
    free = np.arange(1, count + 1, dtype=np.int64) * room
    for step in range(steps - 1, -1, -1):
        symbol = symbols[step].reshape(-1)
        full = np.flatnonzero(states >= limit[symbol])
        taken = np.bincount(full // lanes, minlength=count)
        free -= taken
        place = (free - (np.cumsum(taken) - taken))[full // lanes] + np.arange(full.size)
        words[place] = states[full].astype(np.uint16)  # the low half
        states[full] >>= np.uint32(_WORD_BITS)
        divisor = frequency[symbol]
        quotient = states // divisor
        states = (quotient << np.uint32(PROBABILITY_BITS)) + (states - quotient * divisor) + start[symbol]
    stop = np.arange(1, count + 1, dtype=np.int64) * room
    kept = [words[begin:end] for begin, end in zip(free, stop, strict=True)]
    return Coded(np.cumsum(stop - free), states.reshape(count, lanes), np.concatenate(kept))


def _decoding_table(frequencies: Ints) -> npt.NDArray[np.uint32]:
    """Returns uint32 [4096]: of each slot, frequency (bits 20-31), offset in the symbol (8-19), symbol (0-7)."""
    symbol = np.repeat(np.arange(SYMBOLS), frequencies)
    offset = np.arange(TOTAL) - (np.cumsum(frequencies) - frequencies)[symbol]
    table: npt.NDArray[np.uint32] = ((frequencies[symbol] << 20) | (offset << 8) | symbol).astype(np.uint32)
    return table


def _decode_batch(
    states: States, words: Words, begins: Ints, ends: Ints, table: npt.NDArray[np.uint32], out: Bytes
) -> None:
    """Decodes B blocks of equally many symbols into `out`, uint8 [B, rows, 32, 4]."""
    count, rows = out.shape[:2]
    x = states.reshape(-1).astype(np.uint32)  # a copy
    at = begins.astype(np.int32)
    words = words if words.size else np.zeros(1, dtype=np.uint16)
    ordinals = np.arange(x.size, dtype=np.int32)
    entry, part, low = np.empty_like(x), np.empty_like(x), np.empty(x.shape, dtype=bool)
    group = np.empty((x.size, GROUP), dtype=np.uint8)
    stored, gathered = out.view(np.uint32)[..., 0], group.view(np.uint32).reshape(count, LANES)
    for step in range(rows * GROUP):
        np.bitwise_and(x, TOTAL - 1, out=part)
        table.take(part, out=entry, mode="clip")
        group[:, step % GROUP] = entry.view(np.uint8)[::4]
        if step % GROUP == GROUP - 1:
            stored[:, step // GROUP] = gathered
        np.right_shift(x, PROBABILITY_BITS, out=x)
        np.right_shift(entry, 20, out=part)
        np.multiply(x, part, out=x)
        np.right_shift(entry, 8, out=entry)
        np.bitwise_and(entry, TOTAL - 1, out=entry)
        np.add(x, entry, out=x)
        np.less(x, STATE_MIN, out=low)
        hungry = np.flatnonzero(low)
        taken = np.bitwise_count(np.packbits(low, bitorder="little").view(np.uint32)).astype(np.int32)
        first = at + taken - np.cumsum(taken, dtype=np.int32)
        place = np.repeat(first, taken) + ordinals[: hungry.size]
        # a damaged block may ask for words beyond the end: clipped here, found by the check below
        x[hungry] = (x[hungry] << _WORD_BITS) | words.take(place, mode="clip")
        at += taken
    if (at != ends).any() or (x != STATE_MIN).any():
        raise FormatError("lossless stream: a block does not end where it must; it is damaged")
