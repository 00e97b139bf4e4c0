"""Deltas of every codec on fresh random values, and what they are to be multiplied to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltaserve.delta.coding import code_delta, code_factors
from deltaserve.delta.packed import PackedTensor
from deltaserve.ops.delta_table import DeltaTable, LinearPart
from deltaserve.ops.group_plan import GroupPlan, PlanBuffer
from deltaserve.ops.kernel_layout import to_kernel_layout
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.packed_sbmm import DEFAULT_TUNING, Tuning, packed_sbmm

NAME = "model.layers.0.mlp.up_proj.weight"
CODECS: dict[str, tuple[str, dict[str, int]]] = {
    "sign1": ("sign1", {}),
    "sign1 with columns": ("sign1", {"columns": 1}),
    "ternary": ("ternary", {}),
    "ternary, groups of 32": ("ternary", {"group_size": 32}),
    "int2": ("int2", {}),
    "int2, groups of 128": ("int2", {"group_size": 128}),
    "int2, groups of 16": ("int2", {"group_size": 16}),
    "int3, groups of 256": ("int3", {"group_size": 256}),
    "int3, groups of 48": ("int3", {"group_size": 48}),
    "int4": ("int4", {}),
    "int4, groups of 128": ("int4", {"group_size": 128}),
    "int4, groups of 96": ("int4", {"group_size": 96}),
    "sparse24_int2": ("sparse24_int2", {}),
    "sparse24_int4": ("sparse24_int4", {}),
    "vector8": ("vector8", {}),
    "vector12": ("vector12", {}),
    "vector16": ("vector16", {}),
    "vector24": ("vector24", {}),
    "lowrank": ("lowrank", {"rank": 5}),
    "lowrank_sign1": ("lowrank_sign1", {"rank": 3}),
    "lowrank_sign1 with columns": ("lowrank_sign1", {"rank": 2, "columns": 1}),
    "lowrank_vector8": ("lowrank_vector8", {"rank": 6}),
    "lowrank_ternary": ("lowrank_ternary", {"rank": 4}),
    "lowrank_int2": ("lowrank_int2", {"rank": 9, "group_size": 128}),
}


def coded(kind: str, rows: int, columns: int) -> PackedTensor:
    """Codes a random delta whose rows and columns differ in size."""
    codec, params = CODECS[kind]
    spread = torch.rand(rows, 1) + 0.5
    values = torch.randn(rows, columns) * spread * (torch.rand(columns) + 0.5) / columns**0.5
    return code_delta(NAME, values, torch.bfloat16, codec, base=NAME, params=params)


def adapter(rows: int, columns: int, rank: int, dtype: torch.dtype) -> PackedTensor:
    """Returns a low-rank delta as adapters come."""
    left, right = torch.randn(rows, rank).to(dtype), (torch.randn(rank, columns) / columns**0.5).to(dtype)
    return code_factors(NAME, left, right, (rows, columns), torch.bfloat16, NAME)


class Linear:
    """One linear with deltas in slots.

    Args:
        kernels: to run with.
        widths: features of its parts.
        columns: K.
        deltas: for each slot, one tensor or None for each part.
        tuning: what the kernels were compiled with.
        margin: columns of y before, between and after the parts that nobody may touch.
    """

    def __init__(
        self,
        kernels: KernelLibrary,
        widths: Sequence[int],
        columns: int,
        deltas: Sequence[Sequence[PackedTensor | None]],
        margin: int = 3,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        self.tuning = tuning
        self.kernels, self.columns, self.deltas = kernels, columns, deltas
        begins = [margin + sum(widths[:i]) + margin * i for i in range(len(widths))]
        self.parts = [LinearPart(begin, n) for begin, n in zip(begins, widths, strict=True)]
        self.width = sum(widths) + margin * (len(widths) + 1)
        rank = max((t.entry.params.get("rank", 0) for tensors in deltas for t in tensors if t is not None), default=0)
        self.table = DeltaTable(len(deltas), self.parts, columns, kernels.device, rank)
        for slot, tensors in enumerate(deltas):
            moved = [None if t is None else to_kernel_layout(t.to(kernels.device)) for t in tensors]
            self.table.set(slot, moved)

    def run(self, x: torch.Tensor, y: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        """Returns y after the kernel, on the CPU."""
        device = self.kernels.device
        plan = PlanBuffer(max(len(slots), 1), device)
        plan.upload(GroupPlan.of(slots))
        out = y.to(device, copy=True)
        needed = plan.max_rows * len(self.parts) * self.table.max_rank
        workspace = torch.full((needed,), float("nan"), device=device) if needed else None
        packed_sbmm(self.kernels, out, x.to(device), plan, self.table, workspace, tuning=self.tuning)
        return out.cpu()

    def expected(self, x: torch.Tensor, y: torch.Tensor, slots: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns y in float64, and how far a right result may be off: rounding of y, x · column, codewords, fp32."""
        out, allowed = y.double(), torch.zeros(y.shape, dtype=torch.float64)
        for row, slot in enumerate(slots):
            for part, delta in zip(self.parts, self.deltas[slot] if slot >= 0 else (), strict=False):
                if delta is None:
                    continue
                columns = slice(part.begin, part.begin + delta.shape[0])
                dense = delta.decode().double()
                out[row, columns] += dense @ x[row].double()
                rounded = "column" in delta.planes or "vector" in delta.entry.codec
                noise = 2.0**-9 if rounded else 1e-6
                allowed[row, columns] = dense.abs() @ x[row].double().abs() * noise + 1e-30
        return out, allowed + 2.0**-8 * out.abs()

    def check(self, x: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        """Runs on outputs that are poison wherever nothing may be written; returns y."""
        y = torch.full((len(slots), self.width), float("nan"), dtype=torch.bfloat16)
        for row, slot in enumerate(slots):
            for part, delta in zip(self.parts, self.deltas[slot] if slot >= 0 else (), strict=False):
                if delta is not None:
                    y[row, part.begin : part.begin + delta.shape[0]] = torch.randn(delta.shape[0]).bfloat16()
        got = self.run(x, y, slots)
        expected, allowed = self.expected(x, y, slots)
        poison = torch.isnan(y)
        assert torch.equal(got.view(torch.int16)[poison], y.view(torch.int16)[poison])
        error = (got.double() - expected).abs()[~poison]
        assert bool((error <= allowed[~poison]).all()), f"off by up to {float((error / allowed[~poison]).max())}"
        return got
