"""Selective batched matmul on packed weights, deltaserve.ops.sbmm for the GPU: one launch a linear for all deltas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.delta_table import DeltaTable
from deltaserve.ops.group_plan import GroupPlan, PlanBuffer
from deltaserve.ops.kernel_layout import KernelTensor, unpack_units
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.shrink import shrink
from deltaserve.ops.vector_units import unpack_codewords

_SLOT_BYTES, _RED_ROW_BYTES, _SUM_BYTES = 576, 16 * 36 * 4, 16 * 16  # kernels/schedule.cuh
MAX_SHARED_BYTES = 232448
"""What a block may use of a Hopper multiprocessor's shared memory; of two that share it each half, less 1 KiB."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How `sbmm` is compiled: the macros of kernels/schedule.cuh.

    Attributes:
        stages: units of a warp's ring.
        x_bytes: of shared memory for rows of x; what does not fit is staged in slices, again for each 32 features.
        warps: of a block, 8 or 16; 16 / warps blocks share a multiprocessor. Changes the order of sums.
        l2_prefetch: bytes that a copy brings to L2 at once: 0, 128 or 256.
    """

    stages: int = 6
    x_bytes: int = 135168
    warps: int = 16
    l2_prefetch: int = 128

    @property
    def defines(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return {
            "STAGES": self.stages,
            "X_BYTES": self.x_bytes,
            "WARPS": self.warps,
            "L2_PREFETCH": self.l2_prefetch,
        }

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.warps * (self.stages * _SLOT_BYTES + _RED_ROW_BYTES) + _SUM_BYTES + self.x_bytes


DEFAULT_TUNING = Tuning()


def packed_sbmm(
    kernels: KernelLibrary,
    y: torch.Tensor,
    x: torch.Tensor,
    plan: PlanBuffer,
    table: DeltaTable,
    workspace: torch.Tensor | None = None,
    *,
    tuning: Tuning = DEFAULT_TUNING,
) -> None:
    """Adds each row's own delta, in place, on the kernels' stream; may be captured in a CUDA graph.

    Semantics:
        y[row, part] += x[row] · Δ̂[slot of row, part]ᵀ for the rows of the uploaded plan; others stay as they are. fp32
        accumulation, one rounding to bf16. Column scales of `sign1` are multiplied into x, rounded to bf16; codewords
        are rounded to bf16 (by 2⁻⁹ of a weight of Δ̂ at most). What is added up in which order depends on K and codec
        alone: a row's result does not change with the rest of the batch.

    Args:
        kernels: of the device that everything is on.
        y: bf16 [M, ≥ all parts], columns side by side.
        x: bf16 [M, K], on 16 bytes, row stride a multiple of 8.
        plan: uploaded; its rows are below M.
        table: of the linear; its slots may be set anew after a graph was captured.
        workspace: fp32, at least max_rows · parts · max_rank, for low-rank factors; None if the table takes none.
        tuning: what the kernels were compiled with.

    Raises:
        InvalidArgumentError: dtypes, strides or sizes that do not fit.
    """
    _check(y, x, plan, table, workspace)
    if table.max_rank and workspace is not None:
        shrink(kernels, workspace, x, plan, table)
    kernels.get("sbmm")(
        kernels.multiprocessors * (16 // tuning.warps),
        32 * tuning.warps,
        tuning.shared_bytes,
        (
            y,
            np.int64(y.stride(0)),
            x,
            np.int64(x.stride(0)),
            np.int32(table.columns),
            plan.device,
            np.int32(plan.max_tiles),
            table.device,
            np.int32(len(table.parts)),
            workspace,
            np.int32(table.max_rank),
        ),
    )


def packed_sbmm_reference(y: torch.Tensor, x: torch.Tensor, plan: GroupPlan, table: DeltaTable) -> None:
    """What `packed_sbmm` computes, with torch and a decoded Δ̂, in float32 but for column scales and codewords."""
    for tile in plan.tiles:
        rows = torch.tensor(plan.order[tile.begin : tile.begin + tile.rows], device=x.device)
        for index, part in enumerate(table.parts):
            tensor = table.tensor(tile.slot, index)
            if tensor is None:
                continue
            columns = slice(part.begin, part.begin + tensor.shape[0])
            y[rows, columns] = (y[rows, columns].float() + times_delta(x[rows], tensor)).to(y.dtype)


def times_delta(x: torch.Tensor, tensor: KernelTensor) -> torch.Tensor:
    """Returns x [M, K] · Δ̂ᵀ, float32 [M, N]."""
    n = tensor.shape[0]
    out = torch.zeros(x.shape[0], n, device=x.device)
    if tensor.codes is not None:
        scaled = x if tensor.column is None else (x.float() * tensor.column.float()).to(x.dtype)
        out += scaled.float() @ decode_codes(tensor, torch.bfloat16).T
    if tensor.left is not None and tensor.right is not None:
        out += (x.float() @ tensor.right.float().T) @ tensor.left.float()
    return out


def decode_codes(tensor: KernelTensor, book_dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Returns what the codes stand for, float32 [N, K], without column scales and low-rank factors.

    Args:
        tensor: any.
        book_dtype: that codewords are rounded to; `packed_sbmm` rounds them to bfloat16.
    """
    n, columns = tensor.shape
    if tensor.codes is None or tensor.scales is None:
        return torch.zeros(n, columns)
    if tensor.book is not None:
        numbers = unpack_codewords(tensor.codes, n, -(-columns // tensor.codeword))
        words = torch.nn.functional.embedding(numbers.int(), tensor.book.to(book_dtype).float()).flatten(1)
        return words[:, :columns] * tensor.scales.float()[:, None]
    codes = unpack_units(tensor.codes, tensor.bits, n, columns).float()
    values = 2 * codes - 1 if tensor.bits == 1 else codes - tensor.zero2 / 2
    if not tensor.group:
        return values * tensor.scales.float()[:, None]
    groups = -(-columns // tensor.group)
    scales = tensor.scales.view(-1, groups, 8, 4).permute(0, 3, 2, 1).reshape(-1, groups)[:n].float()
    return values * scales.repeat_interleave(tensor.group, dim=1)[:, :columns]


def _check(
    y: torch.Tensor, x: torch.Tensor, plan: PlanBuffer, table: DeltaTable, workspace: torch.Tensor | None
) -> None:
    width = max((part.begin + part.n for part in table.parts), default=0)
    if y.dtype != torch.bfloat16 or x.dtype != torch.bfloat16:
        raise InvalidArgumentError(f"x is {x.dtype} and y {y.dtype}; the kernels take bfloat16")
    if x.shape[1] != table.columns or y.shape[1] < width or x.shape[0] != y.shape[0]:
        raise InvalidArgumentError(f"x {tuple(x.shape)}, y {tuple(y.shape)} for a linear of {width} × {table.columns}")
    if x.stride(1) != 1 or y.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        raise InvalidArgumentError(
            f"x has strides {x.stride()} at address {x.data_ptr() % 16} mod 16, y {y.stride()}; expected columns "
            f"side by side, rows of x on multiples of 8 values and x on 16 bytes"
        )
    needed = plan.max_rows * len(table.parts) * table.max_rank
    if needed and (workspace is None or workspace.numel() < needed or workspace.dtype != torch.float32):
        raise InvalidArgumentError(f"low-rank factors of rank {table.max_rank} need a float32 workspace of {needed}")
