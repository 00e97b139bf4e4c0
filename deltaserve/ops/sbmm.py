"""Selective batched matmul: every row of a batch times the delta of its own fine-tune.

This is the reference of the kernel, and what the CPU runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.codecs.lowrank import LEFT, RIGHT
from deltaserve.delta.packed import PackedTensor

_CHUNK_ELEMENTS = 4 << 20  # of Δ̂ decoded at a time


@dataclass(frozen=True, slots=True)
class Group:
    """Rows begin … end − 1 of a batch use one delta.

    Attributes:
        begin: first row.
        end: one past the last row.
        operand: Δ̂ [N, K], packed or as a dense tensor.
    """

    begin: int
    end: int
    operand: PackedTensor | torch.Tensor


def sbmm(y: torch.Tensor, x: torch.Tensor, groups: Sequence[Group]) -> None:
    """Adds each group's delta to its rows, in place.

    Semantics:
        y[b:e, :N] += x[b:e] @ Δ̂ᵀ for each group (b, e, Δ̂ [N, K]); other rows stay as they are. Packed operands are
        decoded and multiplied in float32, dense ones in their own dtype. Of `lowrank`, Δ̂ = left · right, nothing is
        decoded: y[b:e, :N] += (x[b:e] @ rightᵀ) @ leftᵀ, in float32.

    Args:
        y: [M, ≥ N], any floating dtype; N may differ from group to group (vocabularies).
        x: [M, K], any floating dtype.
        groups: disjoint ranges of rows.

    Raises:
        ValueError: a range or an operand that does not fit, or one that holds values of W_f instead of Δ̂.
    """
    for group in groups:
        _check(y, x, group)
        if group.begin == group.end:
            continue
        rows = x[group.begin : group.end]
        factors = _factors(group.operand)
        if factors is not None:
            left, right = factors
            y[group.begin : group.end, : left.shape[0]] += ((rows.float() @ right.T) @ left.T).to(y.dtype)
            continue
        for begin, end, delta in _pieces(group.operand):
            y[group.begin : group.end, begin:end] += (rows.to(delta.dtype) @ delta.T).to(y.dtype)


def _factors(operand: PackedTensor | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns left [N, r] and right [r, K] in float32 of a `lowrank` operand."""
    if isinstance(operand, torch.Tensor) or operand.entry.codec != "lowrank":
        return None
    return operand.planes[LEFT].float(), operand.planes[RIGHT].float()


def _pieces(operand: PackedTensor | torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yields Δ̂ by ranges of its rows: first, one past the last, values."""
    total = operand.shape[0]
    if isinstance(operand, torch.Tensor):
        yield 0, total, operand
        return
    step = max(1, _CHUNK_ELEMENTS // operand.shape[1])
    for begin in range(0, total, step):
        end = min(begin + step, total)
        yield begin, end, operand.rows(slice(begin, end))


def _check(y: torch.Tensor, x: torch.Tensor, group: Group) -> None:
    shape = group.operand.shape
    if not 0 <= group.begin <= group.end <= x.shape[0] or x.shape[0] != y.shape[0]:
        raise ValueError(f"rows {group.begin} to {group.end} of x {tuple(x.shape)}, y {tuple(y.shape)}")
    if len(shape) != 2 or shape[1] != x.shape[1] or shape[0] > y.shape[1]:
        raise ValueError(f"delta {tuple(shape)} does not fit x {tuple(x.shape)}, y {tuple(y.shape)}")
    if isinstance(group.operand, PackedTensor) and group.operand.form != "delta":
        raise ValueError(
            f"{group.operand.entry.name!r} is stored whole or in parts: take PackedTensor.delta(base) as operand"
        )
