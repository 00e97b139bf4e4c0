"""Packed deltas to dense merged weights, W_b + Δ̂ in bf16, for prefill and hot deltas.

The reference is PackedTensor.merged.
"""

from __future__ import annotations

import numpy as np
import torch

from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.delta_table import DeltaTable
from deltaserve.ops.kernel_library import KernelLibrary

_BLOCKS_PER_MULTIPROCESSOR = 8
_THREADS = 256


def merge_packed(
    kernels: KernelLibrary, out: torch.Tensor, base: torch.Tensor, table: DeltaTable, slot: int, part: int = 0
) -> None:
    """Writes the merged weights of one part of one delta, on the kernels' stream.

    Semantics:
        out = bf16(W_b + Δ̂), added in fp32: what PackedTensor.merged(base).to(bfloat16) is, bit for bit but for low-rank
        factors, which are added up in another order. Rows that the base lacks count as zero.

    Args:
        kernels: of the device that everything is on.
        out: bf16 [N of the delta, K].
        base: bf16 [rows, K]; may be `out` itself.
        table: holds the delta in `slot`.
        slot: of the delta.
        part: of the linear.

    Raises:
        InvalidArgumentError: no delta there, or tensors that do not fit.
    """
    tensor = table.tensor(slot, part)
    if tensor is None:
        raise InvalidArgumentError(f"slot {slot} has no packed delta for part {part}: its weights are the base's")
    if tuple(out.shape) != tensor.shape or base.shape[1] != tensor.shape[1]:
        raise InvalidArgumentError(f"out {tuple(out.shape)}, base {tuple(base.shape)} for a delta of {tensor.shape}")
    if {out.dtype, base.dtype} != {torch.bfloat16} or any(m.stride(1) != 1 or m.stride(0) % 4 for m in (out, base)):
        raise InvalidArgumentError(
            f"out is {out.dtype}, strides {out.stride()}, base {base.dtype}, {base.stride()}; expected bfloat16, "
            f"columns side by side and row strides that are multiples of 4"
        )
    kernels.get("merge")(
        _BLOCKS_PER_MULTIPROCESSOR * kernels.multiprocessors,
        _THREADS,
        0,
        (
            out,
            np.int64(out.stride(0)),
            base,
            np.int64(base.stride(0)),
            np.int32(base.shape[0]),
            np.int32(table.columns),
            table.address(slot, part),
        ),
    )
