"""Streams: round trips, sizes, and that nothing malformed passes, in bounded time and memory."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaserve.delta.lossless import rans
from deltaserve.delta.lossless.stream import decode, encode, estimate
from deltaserve.delta.lossless.tables import Bytes
from deltaserve.errors import FormatError

from .plain import decode_stream
from .sources import SOURCES, entropy_bytes

SIZES = [1, 2, 3, 5, 127, 128, 129, 1000, 20_000, 33_333]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("size", SIZES)
def test_bytes_come_back(name: str, size: int) -> None:
    data = SOURCES[name](np.random.default_rng(), size)
    for block in (None, 128, 1024, 1 << 15):
        stream = encode(data, block)
        assert stream.size <= size + 20
        assert np.array_equal(decode(stream, size), data)
        assert np.array_equal(encode(data.copy(), block), stream)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("size", "block"), [(1, 128), (1000, 512), (4097, 1024), (9000, 4096)])
def test_a_plain_decoder_reads_the_same(name: str, size: int, block: int) -> None:
    data = SOURCES[name](np.random.default_rng(), size)
    assert decode_stream(encode(data, block).tobytes(), size) == data.tobytes()


@given(data=st.binary(min_size=1, max_size=3000), block=st.sampled_from([128, 256, 2048]))
def test_any_bytes_come_back(data: bytes, block: int) -> None:
    raw = np.frombuffer(data, dtype=np.uint8)
    assert decode(encode(raw, block), raw.size).tobytes() == data


def test_a_plane_of_several_batches_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rans, "_BATCH_BYTES", 1 << 20)
    data = SOURCES["2-bit codes"](np.random.default_rng(), (2 << 20) + 12_345)
    stream = encode(data)
    assert np.array_equal(decode(stream, data.size), data)
    assert stream.size < 1.005 * entropy_bytes(data)


@pytest.mark.parametrize(("name", "stride"), [("3-bit codes", 3), ("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_byte_planes_are_split_where_it_pays(name: str, stride: int) -> None:
    data = SOURCES[name](np.random.default_rng(), 120_000)
    stream = encode(data)
    assert stream[1] == stride
    assert stream.size < 0.98 * entropy_bytes(data)
    split = sum(entropy_bytes(data[place::stride]) for place in range(stride))
    assert stream.size < 1.02 * split + 2000


@pytest.mark.parametrize("name", ["skewed", "2-bit codes", "4-bit codes", "two symbols", "zero"])
def test_sizes_are_near_the_entropy_and_the_estimate(name: str) -> None:
    data = SOURCES[name](np.random.default_rng(), 1 << 18)
    stream = encode(data)
    assert stream.size < 1.01 * entropy_bytes(data) + 0.009 * data.size
    assert abs(stream.size - estimate(data)) < 0.01 * data.size


def test_what_is_random_is_stored_raw() -> None:
    data = SOURCES["random"](np.random.default_rng(), 50_000)
    assert encode(data).tobytes() == bytes([1, 1, 14, 0, 0, 0, 0, 0]) + data.tobytes()


def parts_of(size: int = 1000) -> tuple[Bytes, Bytes]:
    data = SOURCES["skewed"](np.random.default_rng(), size)
    return data, encode(data, 512)


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (0, 2, "version 2"),
        (1, 0, "0 byte-planes"),
        (1, 5, "5 byte-planes"),
        (2, 6, r"2\^6"),
        (2, 16, r"2\^16"),
        (3, 1, "version 1.1"),
        (4, 2, "no byte-plane"),
        (4, 0, "no byte-plane"),  # raw, with a table
        (5, 255, "no byte-plane"),
        (7, 0, "no byte-plane"),
        (7, 13, "no byte-plane"),
    ],
)
def test_bad_heads_are_refused(place: int, value: int, word: str) -> None:
    data, stream = parts_of()
    stream[place] = value
    with pytest.raises(FormatError, match=word):
        decode(stream, data.size)


def test_every_truncation_and_extension_is_refused() -> None:
    data, stream = parts_of()
    for size in range(stream.size):
        with pytest.raises(FormatError):
            decode(stream[:size], data.size)
    with pytest.raises(FormatError, match="1 too many"):
        decode(np.append(stream, np.uint8(0)), data.size)


@pytest.mark.parametrize("size", [0, 1, 512, 513, 896, 1025, 1536, 1 << 20])
def test_another_size_than_the_plane_s_is_refused(size: int) -> None:
    """But for one: up to the next multiple of 128 symbols are coded anyhow, so a manifest's sha256 is needed there."""
    _, stream = parts_of(1000)
    with pytest.raises(FormatError):
        decode(stream, size)


def test_no_bomb() -> None:
    """A small stream that claims to hold what no memory holds is refused before anything of that size is made."""
    stream = encode(np.zeros(1 << 20, dtype=np.uint8))
    assert stream.size < 5000
    tracemalloc.start()
    for size in (1 << 21, 1 << 40, 1 << 62, 1 << 120):
        with pytest.raises(FormatError):
            decode(stream, size)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


def test_more_byte_planes_than_bytes_are_refused() -> None:
    stream = np.frombuffer(bytes([1, 4, 14, 0]) + bytes(16) + b"abc", dtype=np.uint8)
    with pytest.raises(FormatError, match="empty"):
        decode(stream, 3)


@pytest.mark.parametrize("name", ["skewed", "two symbols", "4-bit codes", "nearly constant", "zero"])
def test_most_damage_to_coded_parts_is_found(name: str) -> None:
    """Not all: symbols of equal frequency can change places unseen. The manifest's sha256 finds those, as tests of the
    reader show; here nothing but a FormatError may come of it."""
    random = np.random.default_rng()
    raw = SOURCES[name](random, 20_000)
    stream, refused = encode(raw, 4096), 0
    assert stream[4:8].any()
    for _ in range(150):
        bad = stream.copy()
        bad[random.integers(stream.size)] ^= random.integers(1, 256, dtype=np.uint8)
        try:
            assert decode(bad, raw.size).size == raw.size
        except FormatError:
            refused += 1
    assert refused > 100


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_heads_and_sections_of_any_contents_are_refused_or_decoded(data: st.DataObject) -> None:
    raw = SOURCES["skewed"](np.random.default_rng(data.draw(st.integers(0, 1 << 30))), 3000)
    bad = encode(raw, 512).tobytes()
    begin = data.draw(st.integers(0, len(bad) - 1))
    end = data.draw(st.integers(begin, min(begin + 200, len(bad))))
    bad = bad[:begin] + data.draw(st.binary(max_size=200)) + bad[end:]
    size = data.draw(st.sampled_from([3000, 1, 2999, 100_000]))
    with suppress(FormatError):
        assert decode(np.frombuffer(bad, dtype=np.uint8), size).size == size


@settings(max_examples=300, deadline=None)
@given(stream=st.binary(max_size=2000), size=st.integers(1, 5000))
def test_arbitrary_bytes_are_refused_or_decoded(stream: bytes, size: int) -> None:
    with suppress(FormatError):
        assert decode(np.frombuffer(stream, dtype=np.uint8), size).size == size
