"""Rows of a delta by number: what embeddings need, decoding nothing else."""

from __future__ import annotations

import torch

from deltaserve.delta.packed import PackedTensor


def delta_rows(operand: PackedTensor | torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Returns Δ̂[ids].

    Semantics:
        out[m] = Δ̂[ids[m]]. With a resized vocabulary Δ̂ has the fine-tune's rows; W_b counts as zero where it has none.

    Args:
        operand: Δ̂ [V, K], packed or as a dense tensor.
        ids: int64 [M] below V, on the operand's device.

    Returns:
        [M, K], float32 from a packed operand, the operand's dtype from a dense one.

    Raises:
        ValueError: the operand holds values of W_f instead of Δ̂.
    """
    if isinstance(operand, torch.Tensor):
        return operand[ids]
    if operand.form != "delta":
        raise ValueError(
            f"{operand.entry.name!r} is stored whole or in parts: take PackedTensor.delta(base) as operand"
        )
    return operand.rows(ids)
