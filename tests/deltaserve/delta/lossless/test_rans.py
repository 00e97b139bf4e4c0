"""rANS blocks: round trips, sizes held against the table, random access, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from deltaserve.delta.lossless import rans
from deltaserve.delta.lossless.tables import Bytes, Ints, coded_bytes, normalise
from deltaserve.errors import FormatError

from .sources import SOURCES

SIZES = [1, 127, 128, 129, 1000, 1024, 5000]


def table_of(data: Bytes) -> Ints:
    return normalise(np.bincount(data, minlength=256))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("size", SIZES)
def test_blocks_come_back(name: str, size: int) -> None:
    data = SOURCES[name](np.random.default_rng(), size)
    coded = rans.encode(data, table_of(data), 512)
    assert coded.ends.size == coded.states.shape[0] == -(-size // 512)
    assert coded.words.size == coded.ends[-1]
    assert np.array_equal(rans.decode(coded, table_of(data), size, 512), data)


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SOURCES["skewed"](np.random.default_rng(), 10_000)
    whole = rans.encode(data, table_of(data), 256)
    monkeypatch.setattr(rans, "_BATCH_BYTES", 1024)
    parts = rans.encode(data, table_of(data), 256)
    assert all(np.array_equal(getattr(whole, part), getattr(parts, part)) for part in ("ends", "states", "words"))
    assert np.array_equal(rans.decode(whole, table_of(data), data.size, 256), data)


@pytest.mark.parametrize("name", ["skewed", "2-bit codes", "two symbols", "nearly constant"])
def test_words_are_what_the_table_makes_them(name: str) -> None:
    data = SOURCES[name](np.random.default_rng(), 1 << 18)
    frequencies = table_of(data)
    coded = rans.encode(data, frequencies, 1 << 15)
    expected = coded_bytes(np.bincount(data, minlength=256), frequencies)
    assert abs(coded.words.nbytes + 32 * coded.ends.size - expected) <= 0.003 * data.size


def test_a_block_is_decoded_alone() -> None:
    data = SOURCES["skewed"](np.random.default_rng(), 4096)
    frequencies = table_of(data)
    coded = rans.encode(data, frequencies, 1024)
    begin, end = int(coded.ends[1]), int(coded.ends[2])
    third = rans.Coded(coded.ends[2:3] - begin, coded.states[2:3], coded.words[begin:end])
    assert np.array_equal(rans.decode(third, frequencies, 1024, 1024), data[2048:3072])


def test_states_out_of_range_are_refused() -> None:
    data = SOURCES["skewed"](np.random.default_rng(), 1000)
    for state in (0, (1 << 15) - 1, 1 << 31, (1 << 32) - 1):
        coded = rans.encode(data, table_of(data), 512)
        coded.states[1, 7] = state
        with pytest.raises(FormatError, match="state"):
            rans.decode(coded, table_of(data), 1000, 512)


def test_ends_out_of_order_are_refused() -> None:
    data = SOURCES["random"](np.random.default_rng(), 2048)
    for change in (-2000, 2000):
        coded = rans.encode(data, table_of(data), 512)
        coded.ends[1] += change
        with pytest.raises(FormatError, match="ends before it begins"):
            rans.decode(coded, table_of(data), 2048, 512)
