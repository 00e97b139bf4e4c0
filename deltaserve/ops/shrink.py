"""The first half of low-rank deltas: v = x · rightᵀ for the rows of a plan; `packed_sbmm` adds left · v, the second.

A launch of its own because every block of `sbmm` needs all of K; a step without low-rank factors does not pay for it.
"""

from __future__ import annotations

import numpy as np
import torch

from deltaserve.ops.delta_table import DeltaTable
from deltaserve.ops.group_plan import GroupPlan, PlanBuffer
from deltaserve.ops.kernel_library import KernelLibrary

_BLOCKS_PER_MULTIPROCESSOR = 4
_THREADS = 256


def shrink(kernels: KernelLibrary, v: torch.Tensor, x: torch.Tensor, plan: PlanBuffer, table: DeltaTable) -> None:
    """Computes v in fp32.

    Semantics:
        v[i, part, j] = Σ_k x[order[i], k] · right[slot of the row, part][j, k] for j below the part's rank; the rest is
        not written.

    Args:
        kernels: of the device.
        v: fp32, at least [rows of the plan, parts, max_rank].
        x: bf16 [M, K] on 16 bytes, row stride a multiple of 8.
        plan: uploaded.
        table: of the linear.
    """
    kernels.get("shrink")(
        _BLOCKS_PER_MULTIPROCESSOR * kernels.multiprocessors,
        _THREADS,
        0,
        (
            v,
            x,
            np.int64(x.stride(0)),
            np.int32(table.columns),
            plan.device,
            np.int32(plan.max_tiles),
            table.device,
            np.int32(len(table.parts)),
            np.int32(table.max_rank),
        ),
    )


def shrink_reference(x: torch.Tensor, plan: GroupPlan, table: DeltaTable) -> torch.Tensor:
    """Returns v [rows of the plan, parts, max_rank] in fp32; zero where a part has no such rank."""
    v = torch.zeros(len(plan.order), len(table.parts), table.max_rank, device=x.device)
    for tile in plan.tiles:
        rows = torch.tensor(plan.order[tile.begin : tile.begin + tile.rows], device=x.device)
        for index in range(len(table.parts)):
            tensor = table.tensor(tile.slot, index)
            if tensor is not None and tensor.right is not None:
                v[tile.begin : tile.begin + tile.rows, index, : tensor.rank] = x[rows].float() @ tensor.right.float().T
    return v
