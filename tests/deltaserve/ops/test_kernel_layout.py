"""The kernels' layout: exact both ways, from torch and from the kernel."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.kernel_layout import (
    kernel_codes,
    pack_units,
    runs_packed,
    to_kernel_layout,
    unpack_units,
)
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.packed_sbmm import decode_codes
from deltaserve.ops.vector_units import unpack_codewords

from .kernel_cases import CODECS, NAME, coded


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (32, 128), (33, 144), (70, 576), (31, 300)])
def test_units_round_trip(bits: int, rows: int, columns: int) -> None:
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    units = pack_units(codes, bits)
    assert units.numel() == -(-rows // 32) * -(-columns // 128) * bits * 512
    assert torch.equal(unpack_units(units, bits, rows, columns), codes)
    padding = unpack_units(units, bits, -(-rows // 32) * 32, -(-columns // 128) * 128)
    assert not bool(padding[rows:].any() or padding[:, columns:].any())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_code_has_bits_of_its_own(bits: int) -> None:
    codes = torch.zeros(32, 128, dtype=torch.uint8)
    covered = torch.zeros(bits * 512, dtype=torch.uint8)
    for row, column in torch.cartesian_prod(torch.arange(0, 32, 5), torch.arange(0, 128, 7)).tolist():
        codes[row, column] = (1 << bits) - 1
        one = pack_units(codes, bits)
        codes[row, column] = 0
        assert not bool((covered & one).any())
        assert sum(int(byte).bit_count() for byte in one.tolist()) == bits
        covered |= one


@pytest.mark.parametrize("kind", CODECS)
def test_decodes_to_what_the_codec_does(kind: str) -> None:
    packed = coded(kind, 45, 288)
    tensor = to_kernel_layout(packed)
    delta = decode_codes(tensor)
    if tensor.column is not None:
        delta *= tensor.column.float()
    if tensor.left is not None and tensor.right is not None:
        delta.addmm_(tensor.left.float().T, tensor.right.float())
        assert torch.allclose(delta, packed.decode(), atol=1e-5)
    else:
        assert torch.equal(delta, packed.decode())


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "lowrank"])
@pytest.mark.parametrize(("rows", "columns"), [(32, 128), (45, 288), (1, 16), (97, 400)])
def test_the_kernel_packs_the_same_units(kernels: KernelLibrary, kind: str, rows: int, columns: int) -> None:
    columns = max(columns, CODECS[kind][1].get("rank", 0))
    packed = coded(kind, max(rows, CODECS[kind][1].get("rank", 0)), columns)
    moved = to_kernel_layout(packed.to(kernels.device), kernels)
    expected = to_kernel_layout(packed)
    assert moved.codes is not None
    assert expected.codes is not None
    assert torch.equal(moved.codes.cpu(), expected.codes)
    codes = kernel_codes(packed)
    if expected.codeword:
        assert torch.equal(unpack_codewords(expected.codes, *codes.shape), codes)
    else:
        assert torch.equal(unpack_units(expected.codes, expected.bits, *packed.shape), codes)


def test_sparse_codes_take_no_more_bytes_at_two_bits() -> None:
    sparse, dense = coded("sparse24_int2", 64, 256), coded("int2", 64, 256)
    assert to_kernel_layout(sparse).nbytes == to_kernel_layout(dense).nbytes == sparse.nbytes


@pytest.mark.parametrize("codec", ["tiered_sign1", "int2"])
def test_what_the_kernels_do_not_take_is_told(codec: str) -> None:
    columns, params = (64, {"rows": 2}) if codec == "tiered_sign1" else (40, {})
    packed = code_delta(NAME, torch.randn(8, columns), torch.bfloat16, codec, base=NAME, params=params)
    assert not runs_packed(packed)
    assert not runs_packed(code_dense(NAME, torch.zeros(4, 16)))
    with pytest.raises(InvalidArgumentError, match="multiply it densely"):
        to_kernel_layout(packed)
