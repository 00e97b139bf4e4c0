"""Merged weights against PackedTensor.merged."""

from __future__ import annotations

import pytest
import torch

from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.delta_table import DeltaTable, LinearPart
from deltaserve.ops.kernel_layout import to_kernel_layout
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.merge_packed import merge_packed
from tests.emulation.library import EmulatedKernels

from .kernel_cases import CODECS, coded


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize(("rows", "columns", "base_rows"), [(45, 576, 45), (64, 144, 40), (33, 256, 50)])
def test_every_codec_and_resized_vocabularies(
    kernels: KernelLibrary, kind: str, rows: int, columns: int, base_rows: int
) -> None:
    packed = coded(kind, rows, columns)
    base = torch.randn(base_rows, columns).bfloat16()
    table = DeltaTable(3, [LinearPart(0, 8), LinearPart(8, rows)], columns, kernels.device, max_rank=9)
    table.set(1, [None, to_kernel_layout(packed.to(kernels.device))])
    out = torch.full((rows + 1, columns + 8), float("nan"), dtype=torch.bfloat16, device=kernels.device)
    merge_packed(kernels, out[:rows, :columns], base.to(kernels.device), table, 1, 1)
    got, expected = out.cpu(), packed.merged(base).bfloat16()
    if packed.entry.codec.startswith("lowrank"):  # added up in another order
        assert torch.allclose(got[:rows, :columns].float(), expected.float(), rtol=2**-7, atol=1e-6)
    else:
        assert torch.equal(got[:rows, :columns], expected)
    assert bool(torch.isnan(got[rows:]).all() and torch.isnan(got[:, columns:]).all())


def test_in_place(kernels: KernelLibrary) -> None:
    packed, weights = coded("int3, groups of 48", 70, 400), torch.randn(70, 400).bfloat16()
    table = DeltaTable(1, [LinearPart(0, 70)], 400, kernels.device)
    table.set(0, [to_kernel_layout(packed.to(kernels.device))])
    merged = weights.to(kernels.device, copy=True)
    merge_packed(kernels, merged, merged, table, 0)
    assert torch.equal(merged.cpu(), packed.merged(weights).bfloat16())


def test_what_does_not_fit_is_refused() -> None:
    kernels = EmulatedKernels()
    table = DeltaTable(2, [LinearPart(0, 8)], 32, kernels.device)
    table.set(0, [to_kernel_layout(coded("sign1", 8, 32))])
    out = torch.zeros(8, 32, dtype=torch.bfloat16)
    with pytest.raises(InvalidArgumentError, match="slot 1"):
        merge_packed(kernels, out, out, table, 1)
    with pytest.raises(InvalidArgumentError, match="for a delta"):
        merge_packed(kernels, out[:7], out, table, 0)
    with pytest.raises(InvalidArgumentError, match="bfloat16"):
        merge_packed(kernels, out, out.float(), table, 0)
