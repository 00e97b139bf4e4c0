"""Bit streams: round trips and the documented layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaserve.delta.packing import pack, packed_bytes, padding_is_zero, unpack


@settings(deadline=None, max_examples=200)
@given(rows=st.integers(1, 5), columns=st.integers(1, 70), bits=st.integers(1, 4), seed=st.integers(0, 1000))
def test_round_trip_is_exact_and_rows_are_bit_streams(rows: int, columns: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_bytes(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)
    for row, stored in zip(codes.tolist(), packed.tolist(), strict=True):
        stream = sum(code << (bits * k) for k, code in enumerate(row))
        assert int.from_bytes(bytes(stored), "little") == stream
    assert padding_is_zero(packed, bits, columns)


def test_sees_bits_in_the_padding() -> None:
    packed = pack(torch.ones(2, 5, dtype=torch.uint8), 3)
    assert packed.shape == (2, 2)
    packed[1, 1] |= 0x80
    assert not padding_is_zero(packed, 3, 5)


def test_rows_may_be_taken_one_by_one() -> None:
    codes = torch.randint(0, 8, (6, 13), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, 3)[2:3], 3, 13), codes[2:3])


@pytest.mark.parametrize("bits", [0, 5, 8])
def test_refuses_other_widths(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        pack(torch.zeros(1, 8, dtype=torch.uint8), bits)
