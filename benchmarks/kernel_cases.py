"""Linears of Llama models with random deltas, enough copies of each that no run finds its weights in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltaserve.ops.delta_table import DeltaTable, LinearPart
from deltaserve.ops.group_plan import GroupPlan, PlanBuffer
from deltaserve.ops.kernel_layout import BLOCK_N, CHUNK_K, UNIT_BYTES, KernelTensor
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.packed_sbmm import DEFAULT_TUNING, Tuning, packed_sbmm
from deltaserve.ops.vector_units import CHUNK_WORDS, device_codebook

MODELS: dict[str, dict[str, tuple[list[int], int]]] = {
    "8b": {
        "qkv": ([4096, 1024, 1024], 4096),
        "o": ([4096], 4096),
        "gate_up": ([14336] * 2, 4096),
        "down": ([4096], 14336),
    },
    "7b": {"qkv": ([4096] * 3, 4096), "o": ([4096], 4096), "gate_up": ([11008] * 2, 4096), "down": ([4096], 11008)},
}
"""Features of the parts and columns of each fused linear."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How deltas are coded: bits and zero · 2 of codes, columns that share a scale, rank, columns of a codeword."""

    bits: int = 0
    zero2: int = 0
    group: int = 0
    rank: int = 0
    codeword: int = 0


CODECS = {
    "sign1": Coding(1, 1),
    "int2": Coding(2, 3, 128),
    "int4": Coding(4, 15, 128),
    "int3": Coding(3, 7, 128),
    "ternary": Coding(2, 2),
    "sparse24_2": Coding(2, 4),
    "lowrank16": Coding(rank=16),
    "lowrank64": Coding(rank=64),
    "lr16_sign1": Coding(1, 1, rank=16),
    "vector8": Coding(1, codeword=8),
    "vector12": Coding(1, codeword=12),
    "vector16": Coding(1, codeword=16),
    "vector24": Coding(1, codeword=24),
    "lr16_vector8": Coding(1, rank=16, codeword=8),
}

_CACHE_BYTES = 200 << 20  # four times the L2
_MAX_COPIES = 96


@dataclass(frozen=True, slots=True)
class Case:
    """`deltas` deltas of one linear, each with `rows` rows of the batch."""

    model: str
    linear: str
    codec: str
    deltas: int
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """N and K of the fused linear."""
        widths, columns = MODELS[self.model][self.linear]
        return sum(widths), columns


class Pool:
    """Random bytes on the GPU that tensors are cut from, round and round."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.device = device
        self._bytes = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
        # bf16 and fp16 of any bits may be huge or NaN: values have a pool of their own
        self._values = (torch.randn(size // 8, device=device, dtype=torch.float16) * 0.02).abs()
        self._dense = (torch.randn(size // 4, device=device, dtype=torch.bfloat16) * 0.02).contiguous()
        self._at = {"bytes": 0, "values": 0}

    def codes(self, size: int) -> torch.Tensor:
        """Returns uint8 [size]."""
        return self._take(self._bytes, "bytes", size)

    def values(self, count: int) -> torch.Tensor:
        """Returns fp16 [count], positive."""
        return self._take(self._values, "values", count)

    def dense(self, n: int, k: int) -> list[torch.Tensor]:
        """Returns bf16 [n, k] weights, several, which together do not fit the cache."""
        count = max(1, min(self._dense.numel() // (n * k), -(-_CACHE_BYTES // (2 * n * k)) + 1))
        return [self._dense[i * n * k : (i + 1) * n * k].view(n, k) for i in range(count)]

    def _take(self, pool: torch.Tensor, name: str, count: int) -> torch.Tensor:
        begin = self._at[name] if self._at[name] + count <= pool.numel() else 0
        self._at[name] = begin + -(-count // 256) * 256
        return pool[begin : begin + count]


@dataclass(frozen=True, slots=True)
class Built:
    """A case that is ready to launch: tables of as many copies of the linear as defeat the cache."""

    tables: list[DeltaTable]
    parts: list[LinearPart]
    x: torch.Tensor
    y: torch.Tensor
    workspace: torch.Tensor
    plan: PlanBuffer
    single_plans: list[PlanBuffer]
    packed_bytes: int
    tuning: Tuning

    def launch_all(self, kernels: KernelLibrary) -> None:
        """Each copy once, all deltas in one launch."""
        for table in self.tables:
            packed_sbmm(kernels, self.y, self.x, self.plan, table, self.workspace, tuning=self.tuning)

    def launch_one_by_one(self, kernels: KernelLibrary) -> None:
        """Each copy once, a launch for each delta."""
        for table in self.tables:
            for plan in self.single_plans:
                packed_sbmm(kernels, self.y, self.x, plan, table, self.workspace, tuning=self.tuning)


def build(case: Case, pool: Pool, tuning: Tuning = DEFAULT_TUNING) -> Built:
    """Makes a case's deltas, plans and rows."""
    device = pool.device
    widths, columns = MODELS[case.model][case.linear]
    coding = CODECS[case.codec]
    parts = [LinearPart(sum(widths[:i]), n) for i, n in enumerate(widths)]
    slots = max(case.deltas, 1)
    one = sum(_tensor(pool, coding, n, columns).nbytes for n in widths)
    copies = max(1, min(_MAX_COPIES, -(-_CACHE_BYTES // (one * slots))))
    tables = [DeltaTable(slots, parts, columns, device, coding.rank) for _ in range(copies)]
    for table in tables:
        for slot in range(slots):
            table.set(slot, [_tensor(pool, coding, n, columns) for n in widths])
    rows = max(1, case.deltas * case.rows)
    owners = [row // case.rows for row in range(case.deltas * case.rows)]
    single = [[slot if owner == slot else -1 for owner in owners] for slot in range(case.deltas)]
    return Built(
        tables,
        parts,
        torch.randn(rows, columns, device=device).bfloat16(),
        torch.randn(rows, sum(widths), device=device).bfloat16(),
        torch.empty(rows * len(parts) * max(coding.rank, 1), device=device),
        _plan(owners, rows, device),
        [_plan(slots_of_rows, rows, device) for slots_of_rows in single],
        one * case.deltas,
        tuning,
    )


def _plan(slots: list[int], rows: int, device: torch.device) -> PlanBuffer:
    plan = PlanBuffer(rows, device)
    plan.upload(GroupPlan.of(slots))
    return plan


def _tensor(pool: Pool, coding: Coding, n: int, columns: int) -> KernelTensor:
    blocks, chunks = -(-n // BLOCK_N), -(-columns // (CHUNK_WORDS * coding.codeword or CHUNK_K))
    codes = scales = left = right = None
    if coding.bits:
        codes = pool.codes(blocks * chunks * coding.bits * UNIT_BYTES)
        groups = -(-columns // coding.group) if coding.group else 0
        scales = pool.values(blocks * groups * BLOCK_N if groups else n)
    if coding.rank:
        left = pool.values(coding.rank * n).view(coding.rank, n)
        right = pool.values(coding.rank * columns).view(coding.rank, columns)
    book = device_codebook(coding.codeword, pool.device) if coding.codeword else None
    return KernelTensor((n, columns), coding.bits, coding.zero2, coding.group, codes, scales, None, left, right, book)
