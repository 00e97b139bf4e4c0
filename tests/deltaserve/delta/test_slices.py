"""Slices of packed tensors decode to slices of what the whole decodes to, for every codec."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.codecs import CODECS
from deltaserve.delta.coding import code_delta
from deltaserve.delta.packed import PackedTensor
from deltaserve.delta.slices import slice_columns, slice_rows

DELTAS = [name for name, codec in CODECS.items() if codec.form == "delta" and name != "same"]


def coded(codec: str, rows: int, columns: int, group: int = 0) -> PackedTensor:
    params = {"rank": 4} if codec.startswith("lowrank") else {}
    params |= {"rows": 5} if codec.startswith("tiered") else {}
    params |= {"group_size": group} if group and codec in ("ternary", "int2", "int3", "int4") else {}
    params |= {"columns": group % 64 // 32} if codec == "sign1" else {}
    return code_delta("w", torch.randn(rows, columns), torch.float32, codec, base="w", params=params)


@pytest.mark.parametrize("codec", DELTAS)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rows_of_every_codec(codec, ranks):
    packed = coded(codec, 24, 64)
    for rank in range(ranks):
        begin, end = rank * 24 // ranks, (rank + 1) * 24 // ranks
        part = slice_rows(packed, begin, end)
        if part is None:
            assert codec.startswith("tiered")
            continue
        assert part.shape == (end - begin, 64)
        assert part.entry.bytes == part.nbytes
        assert torch.allclose(part.decode(), packed.decode()[begin:end], atol=1e-6)
        assert torch.allclose(part.rows(slice(1, 3)), packed.decode()[begin + 1 : begin + 3], atol=1e-6)


@pytest.mark.parametrize("codec", DELTAS)
@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize(
    ("columns", "ranks"), [(64, 2), (128, 2), (256, 2), (256, 8), (192, 2), (1280, 2), (1280, 4), (112, 2), (384, 3)]
)
def test_columns_are_right_where_they_can_be_cut(codec, group, columns, ranks):
    packed = coded(codec, 6, columns, group)
    for rank in range(ranks):
        begin, end = rank * columns // ranks, (rank + 1) * columns // ranks
        part = slice_columns(packed, begin, end)
        if part is not None:
            assert part.shape == (6, end - begin)
            assert torch.allclose(part.decode(), packed.decode()[:, begin:end], atol=1e-6)
            part.codec.check_planes(part.planes, part.shape)


@pytest.mark.parametrize("codec", DELTAS)
def test_columns_of_real_shapes_can_be_cut(codec):
    for columns, ranks in ((3840, 2), (7680, 4)):
        packed = coded(codec, 6, columns, 128)
        parts = [slice_columns(packed, r * columns // ranks, (r + 1) * columns // ranks) for r in range(ranks)]
        assert all(part is not None for part in parts)
        assert sum(part.nbytes for part in parts if part) < 1.5 * packed.nbytes + 6 * 64 * ranks


def test_no_cut_goes_through_a_group_or_a_byte():
    assert slice_columns(coded("int4", 4, 192, 128), 0, 96) is None
    assert slice_columns(coded("ternary", 4, 256), 128, 256) is None
