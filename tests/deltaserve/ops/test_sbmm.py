"""SBMM by shape of traffic, against dense matmuls."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.coding import code_delta, code_dense, code_factors
from deltaserve.delta.packed import PackedTensor
from deltaserve.ops import sbmm as module
from deltaserve.ops.sbmm import Group, sbmm

ROWS, N, K = 12, 20, 37
NAME = "model.layers.0.mlp.up_proj.weight"
TRAFFIC = {
    "distinct": [(i, i + 1, i) for i in range(ROWS)],
    "uniform": [(3 * i, 3 * i + 3, i) for i in range(4)],
    "skewed": [(0, 9, 0), (9, 11, 1), (11, 12, 2)],
    "identical": [(0, ROWS, 0)],
    "some rows of the base": [(2, 5, 0), (8, 9, 1)],
    "empty range": [(4, 4, 0)],
    "none": [],
}
CODECS = ["sign1", "int2", "int3", "int4", "lowrank"]


def packed(codec: str, rows: int = N, seed: int = 0) -> PackedTensor:
    generator = torch.Generator().manual_seed(seed)
    if codec == "lowrank":
        left, right = (torch.randn(shape, generator=generator).bfloat16() for shape in ((rows, 3), (3, K)))
        return code_factors(NAME, left, right, (rows, K), torch.bfloat16, NAME)
    delta = torch.randn(rows, K, generator=generator)
    return code_delta(NAME, delta, torch.bfloat16, codec, base=NAME)


@pytest.mark.parametrize("kind", [*CODECS, "tensor", "mixed"])
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_adds_every_row_s_own_delta(traffic: str, kind: str) -> None:
    torch.manual_seed(0)
    deltas = [packed(CODECS[i % len(CODECS)] if kind in ("mixed", "tensor") else kind, seed=i) for i in range(ROWS)]
    x, y = torch.randn(ROWS, K), torch.randn(ROWS, N)
    expected, groups = y.clone(), []
    for begin, end, index in TRAFFIC[traffic]:
        dense = kind == "tensor" or (kind == "mixed" and index % 5 == 4)
        groups.append(Group(begin, end, deltas[index].decode() if dense else deltas[index]))
        expected[begin:end] += x[begin:end] @ deltas[index].decode().T
    sbmm(y, x, groups)
    assert torch.allclose(y, expected, atol=1e-4)


def test_decodes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    delta, x = packed("int3"), torch.randn(2, K)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 3 * K)
    y = torch.zeros(2, N)
    sbmm(y, x, [Group(0, 2, delta)])
    assert torch.allclose(y, x @ delta.decode().T, atol=1e-4)


def test_factors_are_used_without_decoding_them(monkeypatch: pytest.MonkeyPatch) -> None:
    delta, x = packed("lowrank"), torch.randn(4, K)
    expected = x[1:3] @ delta.decode().T

    def refuse(*_: object, **__: object) -> torch.Tensor:
        pytest.fail("decoded")

    monkeypatch.setattr(PackedTensor, "rows", refuse)
    monkeypatch.setattr(PackedTensor, "decode", refuse)
    y = torch.zeros(4, N + 5)
    sbmm(y, x, [Group(1, 3, delta)])
    assert torch.allclose(y[1:3, :N], expected, atol=1e-4)
    assert bool((y[:, N:] == 0).all() and (y[0] == 0).all() and (y[3] == 0).all())


def test_vocabularies_may_differ_from_row_to_row() -> None:
    small, large = packed("int4", rows=15), packed("int4", rows=18)
    x, y = torch.randn(2, K), torch.zeros(2, 20)
    sbmm(y, x, [Group(0, 1, small), Group(1, 2, large)])
    assert bool((y[0, 15:] == 0).all())
    assert bool((y[1, :18] != 0).all())
    assert bool((y[1, 18:] == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(dtype: torch.dtype) -> None:
    delta, x = packed("int4"), torch.randn(3, K).to(dtype)
    y = torch.zeros(3, N, dtype=dtype)
    sbmm(y, x, [Group(0, 3, delta)])
    assert torch.allclose(y.float(), x.float() @ delta.decode().T, rtol=1e-2, atol=1e-1)


def test_writes_into_a_view() -> None:
    delta, x = packed("sign1"), torch.randn(3, K)
    y = torch.zeros(3, N + 8)
    sbmm(y[:, 4 : 4 + N], x, [Group(1, 3, delta)])
    assert torch.allclose(y[1:, 4 : 4 + N], x[1:] @ delta.decode().T, atol=1e-4)
    assert bool((y[:, :4] == 0).all() and (y[:, 4 + N :] == 0).all() and (y[0] == 0).all())


@pytest.mark.parametrize(("begin", "end"), [(-1, 1), (2, 1), (0, 4)])
def test_ranges_outside_are_refused(begin: int, end: int) -> None:
    with pytest.raises(ValueError, match="rows"):
        sbmm(torch.zeros(3, N), torch.zeros(3, K), [Group(begin, end, packed("int4"))])


def test_operands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        sbmm(torch.zeros(3, N - 1), torch.zeros(3, K), [Group(0, 1, packed("int4"))])
    with pytest.raises(ValueError, match="does not fit"):
        sbmm(torch.zeros(3, N), torch.zeros(3, K + 1), [Group(0, 1, packed("int4"))])
    with pytest.raises(ValueError, match="stored whole"):
        sbmm(torch.zeros(3, N), torch.zeros(3, K), [Group(0, 1, code_dense(NAME, torch.zeros(N, K)))])
