"""Codewords in units, and the codebooks that tensors share."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.codecs.vector import codebook
from deltaserve.ops.kernel_layout import to_kernel_layout
from deltaserve.ops.vector_units import device_codebook, pack_codewords, unpack_codewords

from .kernel_cases import coded


@pytest.mark.parametrize(("rows", "words"), [(1, 1), (32, 16), (33, 18), (70, 72), (31, 25)])
def test_units_round_trip(rows: int, words: int) -> None:
    codes = torch.randint(0, 256, (rows, words), dtype=torch.uint8)
    units = pack_codewords(codes)
    blocks, chunks = -(-rows // 32), -(-words // 16)
    assert units.numel() == blocks * chunks * 512
    assert torch.equal(unpack_codewords(units, rows, words), codes)
    padded = unpack_codewords(units, blocks * 32, chunks * 16)
    assert not bool(padded[rows:].any() or padded[:, words:].any())


def test_a_lane_s_bytes_are_four_codewords_of_four_features() -> None:
    codes = torch.randint(0, 256, (32, 16), dtype=torch.uint8)
    lanes = pack_codewords(codes).view(32, 4, 4)
    for lane in (0, 5, 31):
        g, t = divmod(lane, 4)
        assert torch.equal(lanes[lane], codes[g::8, t::4].T)


@pytest.mark.parametrize("width", [8, 12, 16, 24])
def test_codebooks_are_exact_and_there_once(width: int) -> None:
    first, second = (to_kernel_layout(coded(f"vector{width}", 40, 80)) for _ in range(2))
    assert first.book is second.book is device_codebook(width, torch.device("cpu"))
    assert torch.equal(first.book.float(), codebook(width))
    assert first.codeword == width
    assert first.chunks == -(-80 // (16 * width))
    assert first.nbytes == 2 * first.chunks * 512 + 40 * 2
