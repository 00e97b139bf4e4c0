"""The batched kernel against float64 products with decoded deltas, by shape of traffic and codec."""

from __future__ import annotations

import random

import pytest
import torch

from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.delta_table import DeltaTable, LinearPart
from deltaserve.ops.group_plan import GroupPlan, PlanBuffer
from deltaserve.ops.kernel_layout import to_kernel_layout
from deltaserve.ops.kernel_library import CudaKernels, KernelLibrary
from deltaserve.ops.packed_sbmm import MAX_SHARED_BYTES, Tuning, packed_sbmm, packed_sbmm_reference
from tests.emulation.library import EmulatedKernels

from .kernel_cases import CODECS, Linear, adapter, coded

TRAFFIC = {
    "distinct": list(range(6)),
    "uniform": [i // 3 for i in range(12)],
    "skewed": [0] * 9 + [1, 1, 2],
    "identical": [3] * 16,
    "shuffled, some rows of the base": [2, -1, 0, 2, -1, 1, 0, 2, 5],
    "more than a tile": [4] * 35 + [1] + [-1],
    "one row": [5],
    "base only": [-1, -1],
}


def inputs(rows: int, columns: int) -> torch.Tensor:
    return (torch.randn(rows, columns) + 0.3).bfloat16()  # not centred, as after an activation


@pytest.mark.parametrize("kind", CODECS)
def test_every_codec(kernels: KernelLibrary, kind: str) -> None:
    rows, columns = 77, 576
    deltas = [[coded(kind, rows, columns)] for _ in range(3)]
    slots = [0] * 11 + [-1] + [2, 1, 2]
    Linear(kernels, [rows], columns, deltas).check(inputs(len(slots), columns), slots)


@pytest.mark.parametrize("traffic", TRAFFIC)
def test_mixed_codecs_by_traffic(kernels: KernelLibrary, traffic: str) -> None:
    kinds, slots, columns = list(CODECS), TRAFFIC[traffic], 272
    random.shuffle(kinds)
    deltas = [[coded(kinds[slot], 70, columns), None, coded(kinds[slot + 6], 33, columns)] for slot in range(6)]
    deltas[4][0], deltas[1] = None, [None, None, None]
    linear = Linear(kernels, [70, 40, 33], columns, deltas)
    linear.check(inputs(len(slots), columns), slots)


@pytest.mark.parametrize("columns", [16, 128, 144, 2048, 2064, 4112])
@pytest.mark.parametrize(
    "kind",
    ["sign1 with columns", "int2, groups of 128", "int3, groups of 48", "int4", "vector8", "vector12", "vector24"],
)
def test_columns_that_fill_no_chunk_and_many(kernels: KernelLibrary, kind: str, columns: int) -> None:
    deltas = [[coded(kind, 40, columns)] for _ in range(2)]
    Linear(kernels, [40], columns, deltas).check(inputs(4, columns), [0, 1, 0, 0])


@pytest.mark.parametrize("features", [1, 8, 31, 32, 33, 200])
def test_any_number_of_features(kernels: KernelLibrary, features: int) -> None:
    deltas = [[coded(kind, features, 160)] for kind in ("sign1", "int2")]
    Linear(kernels, [features], 160, deltas).check(inputs(3, 160), [1, 0, 1])


def test_vocabularies_may_differ_from_row_to_row(kernels: KernelLibrary) -> None:
    deltas = [[coded("int4", 65, 128)], [coded("sign1", 40, 128)], [coded("int2", 90, 128)]]
    Linear(kernels, [90], 128, deltas).check(inputs(4, 128), [2, 0, 1, 1])


def test_256_rows_of_64_deltas(kernels: KernelLibrary) -> None:
    kinds = list(CODECS)
    deltas = [[coded(kinds[i % len(kinds)], 33, 144)] for i in range(64)]
    slots = [random.randrange(-1, 64) for _ in range(256)]
    Linear(kernels, [33], 144, deltas).check(inputs(256, 144), slots)


def test_a_tile_for_each_of_256_rows(kernels: KernelLibrary) -> None:
    deltas = [[coded("sign1", 32, 32)] for _ in range(256)]
    Linear(kernels, [32], 32, deltas).check(inputs(256, 32), random.sample(range(256), 256))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_adapters_in_their_own_dtype(kernels: KernelLibrary, dtype: torch.dtype) -> None:
    deltas = [[adapter(50, 288, rank, dtype)] for rank in (1, 8, 17)]
    Linear(kernels, [50], 288, deltas).check(inputs(19, 288), [0] * 17 + [1, 2])


def test_a_row_s_result_does_not_change_with_its_neighbours(kernels: KernelLibrary) -> None:
    kinds, columns = list(CODECS), 2320
    deltas = [[coded(kind, 40, columns), coded(kinds[-1 - i], 35, columns)] for i, kind in enumerate(kinds)]
    linear = Linear(kernels, [40, 35], columns, deltas)
    slots = [random.randrange(-1, len(kinds)) for _ in range(20)] + [3] * 14
    x, y = inputs(len(slots), columns), torch.randn(len(slots), linear.width).bfloat16()
    together = linear.run(x, y, slots)
    for row in random.sample(range(len(slots)), 12):
        alone = linear.run(x[row : row + 1], y[row : row + 1], slots[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_rows_of_x_that_do_not_fit_are_staged_in_slices() -> None:
    columns, rows = 4624, 16  # 16 rows take slices of 2048 columns, one row fits
    tuning = Tuning(x_bytes=66048)
    kernels = EmulatedKernels(2, tuning.defines)
    deltas = [
        [coded(kind, 40, columns)]
        for kind in ("sign1 with columns", "int2, groups of 128", "int4, groups of 96", "vector8", "vector24")
    ]
    count = len(deltas)
    x, y = inputs(count * rows, columns), torch.randn(count * rows, 40).bfloat16()
    table = DeltaTable(count, [LinearPart(0, 40)], columns, kernels.device)
    for slot, tensors in enumerate(deltas):
        table.set(slot, [to_kernel_layout(tensors[0])])

    def run(chosen: list[int], slots: list[int]) -> torch.Tensor:
        plan, out = PlanBuffer(len(chosen), kernels.device), y[chosen].clone()
        plan.upload(GroupPlan.of(slots))
        packed_sbmm(kernels, out, x[chosen], plan, table, tuning=tuning)
        return out

    slots = [row % count for row in range(count * rows)]
    sliced = run(list(range(count * rows)), slots)
    expected = y.clone()
    packed_sbmm_reference(expected, x, GroupPlan.of(slots), table)
    assert torch.allclose(sliced.float(), expected.float(), rtol=2**-7, atol=1e-3)
    for row in (0, 1, 2, 3, 4, 17):
        assert torch.equal(run([row], slots[row : row + 1])[0], sliced[row])


def test_blocks_of_eight_warps() -> None:
    tuning = Tuning(stages=5, x_bytes=66048, warps=8, l2_prefetch=0)
    kinds = ("sign1", "int2, groups of 128", "lowrank_ternary", "int4", "vector16")
    deltas = [[coded(kind, 70, 1168)] for kind in kinds]
    linear = Linear(EmulatedKernels(1, tuning.defines), [70], 1168, deltas, tuning=tuning)
    linear.check(inputs(18, 1168), [0] * 13 + [1, 2, 3, 4, 4])


@pytest.mark.parametrize(("columns", "rows"), [(768, 9), (4096, 14), (272, 1)])
def test_codebooks_take_turns_with_each_other_and_with_rows_of_x(columns: int, rows: int) -> None:
    kinds = ("vector8", "vector24", "sign1", "vector24", "int4", "vector8", "vector16")
    linear = Linear(EmulatedKernels(1), [20] * len(kinds), columns, [[coded(kind, 20, columns) for kind in kinds]])
    for _ in range(3):  # in other orders of warps
        linear.check(inputs(rows, columns), [0] * rows)


def test_shared_memory_fits_the_device() -> None:
    assert Tuning().shared_bytes <= MAX_SHARED_BYTES
    assert Tuning(x_bytes=66048, warps=8).shared_bytes <= MAX_SHARED_BYTES // 2 - 1024


def test_more_blocks_than_items_and_one_block_for_all() -> None:
    deltas = [[coded("int2", 70, 256)], [coded("sign1", 70, 256)]]
    for blocks in (1, 17):
        Linear(EmulatedKernels(blocks), [70], 256, deltas).check(inputs(5, 256), [0, 1, 1, -1, 0])


def test_the_reference_is_what_deltas_decode_to() -> None:
    deltas = [[coded(kind, 40, 144)] for kind in CODECS]
    linear = Linear(EmulatedKernels(), [40], 144, deltas, margin=0)
    slots = list(range(len(CODECS)))
    x, y = inputs(len(slots), 144), torch.randn(len(slots), 40).bfloat16()
    expected, allowed = linear.expected(x, y, slots)
    packed_sbmm_reference(y, x, GroupPlan.of(slots), linear.table)
    assert bool(((y.double() - expected).abs() <= allowed).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are captured on a GPU only")
def test_a_captured_graph_runs_later_plans() -> None:
    kernels = CudaKernels()
    kinds = list(CODECS)
    linear = Linear(kernels, [96, 64], 576, [[coded(kind, 96, 576), coded(kind, 64, 576)] for kind in kinds])
    x = torch.empty(32, 576, dtype=torch.bfloat16, device=kernels.device)
    out = torch.empty(32, linear.width, dtype=torch.bfloat16, device=kernels.device)
    plan = PlanBuffer(32, kernels.device)
    workspace = torch.empty(32 * 2 * linear.table.max_rank, device=kernels.device)
    kernels.warm_up()
    with kernels.stream():
        packed_sbmm(kernels, out, x, plan, linear.table, workspace)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream), kernels.stream():
        packed_sbmm(kernels, out, x, plan, linear.table, workspace)
    for _ in range(4):
        slots = [random.randrange(-1, len(kinds)) for _ in range(32)]
        fresh, y = inputs(32, 576), torch.randn(32, linear.width).bfloat16()
        x.copy_(fresh)
        out.copy_(y)
        plan.upload(GroupPlan.of(slots))
        graph.replay()
        with kernels.stream():
            assert torch.equal(out.cpu(), linear.run(fresh, y, slots))


def test_what_does_not_fit_is_refused() -> None:
    kernels = EmulatedKernels()
    linear = Linear(kernels, [8], 32, [[adapter(8, 32, 2, torch.float16)]], margin=0)
    plan, workspace = PlanBuffer(4, kernels.device), torch.zeros(8)
    x, y = torch.zeros(4, 32, dtype=torch.bfloat16), torch.zeros(4, 8, dtype=torch.bfloat16)
    bad = {
        "bfloat16": (y.float(), x, workspace),
        "for a linear": (y[:, :7], x, workspace),
        "strides": (y, torch.zeros(4, 36, dtype=torch.bfloat16)[:, :32], workspace),
        "workspace": (y, x, workspace[:7]),
    }
    for message, (out, rows, space) in bad.items():
        with pytest.raises(InvalidArgumentError, match=message):
            packed_sbmm(kernels, out, rows, plan, linear.table, space)
