"""Frequency tables: sums, closeness to the counts, storage, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaserve.delta.lossless.tables import (
    SYMBOLS,
    TOTAL,
    TableHeader,
    coded_bytes,
    header_of,
    normalise,
    pack,
    unpack,
)
from deltaserve.errors import FormatError

COUNTS = st.dictionaries(
    st.integers(0, SYMBOLS - 1), st.one_of(st.integers(1, 50), st.integers(1, 1 << 33)), min_size=1, max_size=SYMBOLS
)


def array(counts: dict[int, int]) -> np.ndarray:
    values = np.zeros(SYMBOLS, dtype=np.int64)
    values[list(counts)] = list(counts.values())
    return values


@given(counts=COUNTS)
def test_every_symbol_that_occurs_has_a_share_and_the_sum_is_right(counts: dict[int, int]) -> None:
    frequencies = normalise(array(counts))
    assert frequencies.sum() == TOTAL
    assert frequencies.min() >= 0
    assert frequencies.max() < TOTAL
    assert all(frequencies[symbol] >= 1 for symbol in counts)
    assert np.count_nonzero(frequencies) == max(2, len(counts))


@given(counts=COUNTS)
def test_storage_gives_the_table_back(counts: dict[int, int]) -> None:
    frequencies = normalise(array(counts))
    header = header_of(frequencies)
    data = pack(frequencies, header)
    assert data.size == header.bytes
    assert data.size % 4 == 0
    assert np.array_equal(unpack(data, header), frequencies)


@pytest.mark.parametrize("spread", [0.3, 2.0, 20.0, 300.0])
def test_the_table_costs_little_over_the_entropy(spread: float) -> None:
    counts = np.random.default_rng().exponential(1e5, SYMBOLS) * np.exp(-np.arange(SYMBOLS) / spread)
    counts = counts.astype(np.int64)
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * np.log2(shares)).sum() * counts.sum() / 8
    assert entropy <= coded_bytes(counts, normalise(counts)) <= 1.01 * entropy + 0.002 * counts.sum()


def test_no_single_move_would_make_the_table_better() -> None:
    counts = np.random.default_rng().integers(1, 10_000, SYMBOLS)
    frequencies = normalise(counts)
    best = coded_bytes(counts, frequencies)
    for symbol in range(0, SYMBOLS, 17):
        for other in range(0, SYMBOLS, 13):
            moved = frequencies.copy()
            moved[symbol] += 1
            moved[other] -= 1
            if symbol != other and moved.min() > 0:
                assert coded_bytes(counts, moved) >= 0.9999 * best


def test_tables_that_are_none_are_refused() -> None:
    frequencies = normalise(np.arange(1, SYMBOLS + 1))
    header = header_of(frequencies)
    more = frequencies.copy()
    more[3] += 1
    with pytest.raises(FormatError, match="sum to 4097"):
        unpack(pack(more, header), header)
    one = np.zeros(SYMBOLS, dtype=np.int64)
    one[5] = TOTAL
    wide = TableHeader(5, 5, 13)  # the reader of streams lets no such width through
    with pytest.raises(FormatError, match="less than that"):
        unpack(pack(one, wide), wide)
    odd = TableHeader(0, 2, 12)
    data = np.full(odd.bytes, 255, dtype=np.uint8)
    with pytest.raises(FormatError, match="fill up"):
        unpack(data, odd)
