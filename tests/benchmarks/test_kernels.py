"""The kernels' benchmark on tiny linears and the emulated device: what it launches is right, whatever it takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
import torch

from benchmarks import kernel_cases, kernel_decoding, kernels
from benchmarks.kernel_cases import CODECS, Case, Pool, build
from deltaserve.ops.group_plan import GroupPlan
from deltaserve.ops.packed_sbmm import packed_sbmm_reference
from tests.emulation.library import EmulatedKernels

TINY = {"8b": {"qkv": ([64, 32, 32], 256), "o": ([48], 400)}}


def once(work: Callable[[], object]) -> float:
    work()
    return 1.0


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(kernel_cases, "MODELS", TINY)
    monkeypatch.setattr(kernels, "MODELS", TINY)
    monkeypatch.setattr(kernel_cases, "_CACHE_BYTES", 40 << 10)
    return Pool(4 << 20, torch.device("cpu"))


def test_every_case_runs_and_is_told(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(models=["8b"], codecs=list(CODECS), deltas=[1, 3], rows=[2])
    results = kernels.sweep(options, pool, EmulatedKernels(), 3000.0, once)
    assert len(results) == 2 * len(CODECS) * 2
    assert len(capsys.readouterr().out.splitlines()) == len(results) + 1
    assert kernels.empty_plan(pool, EmulatedKernels(), once) > 0


def test_packed_bytes_are_counted_and_products_right(pool: Pool) -> None:
    built = build(Case("8b", "qkv", "int2", 3, 2), pool)
    assert built.packed_bytes == 3 * 128 * 256 * 2 // 8 + 3 * 128 * 2 * 2
    assert len(built.tables) > 1
    expected = built.y.clone()
    for table in built.tables:
        packed_sbmm_reference(expected, built.x, GroupPlan.of([0, 0, 1, 1, 2, 2]), table)
    built.launch_all(EmulatedKernels())
    assert torch.allclose(built.y.float(), expected.float(), rtol=2e-2, atol=0.1)


def test_decoding_is_checked_while_it_is_measured(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "MODELS", {"8b": {"gate_up": ([64] * 2, 256)}})
    monkeypatch.setattr(kernel_decoding, "_N", 64)
    monkeypatch.setattr(kernel_decoding, "_K", 256)
    monkeypatch.setattr(kernel_decoding, "_STREAM_BYTES", 1 << 16)
    rates = kernel_decoding.measure_decoding(EmulatedKernels(), pool, 3000.0, once)
    assert len(rates) == 14  # 6 of streams, 4 of repacking, 4 of merging
    assert all(rate > 0 for rate in rates.values())
