"""v = x · rightᵀ."""

from __future__ import annotations

import random

import torch

from deltaserve.ops.delta_table import DeltaTable, LinearPart
from deltaserve.ops.group_plan import GroupPlan, PlanBuffer
from deltaserve.ops.kernel_layout import to_kernel_layout
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.shrink import shrink, shrink_reference

from .kernel_cases import adapter, coded


def test_writes_what_has_a_rank_and_nothing_else(kernels: KernelLibrary) -> None:
    columns, device = 592, kernels.device
    table = DeltaTable(4, [LinearPart(0, 40), LinearPart(40, 24)], columns, device, max_rank=19)
    tensors = [
        [adapter(40, columns, 7, torch.float32), adapter(24, columns, 16, torch.bfloat16)],
        [coded("lowrank_sign1", 40, columns), None],
        [coded("int2", 40, columns), adapter(24, columns, 1, torch.float16)],
        [None, None],
    ]
    for slot, both in enumerate(tensors):
        table.set(slot, [None if t is None else to_kernel_layout(t.to(device)) for t in both])
    slots = [random.randrange(-1, 4) for _ in range(30)] + [0] * 18
    x = torch.randn(len(slots), columns).bfloat16().to(device)
    plan, buffer = GroupPlan.of(slots), PlanBuffer(len(slots), device)
    buffer.upload(plan)
    v = torch.full((len(slots), 2, table.max_rank), float("nan"), device=device)
    shrink(kernels, v, x, buffer, table)
    expected = shrink_reference(x, plan, table).cpu()
    got = v.cpu()
    for place, row in enumerate(plan.order):
        for part in range(2):
            tensor = table.tensor(slots[row], part)
            rank = 0 if tensor is None else tensor.rank
            assert torch.allclose(got[place, part, :rank], expected[place, part, :rank], rtol=1e-4, atol=1e-4)
            assert bool(torch.isnan(got[place, part, rank:]).all())
