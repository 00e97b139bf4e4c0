"""Joint 2:4 pruning and quantisation with error feedback, as ΔCompress publishes it (DeltaZip, arXiv 2312.05215 §4).

SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): columns in order; of every four the two of least w² / U_kk² are
dropped, U being the factor of the damped inverse Gram matrix; what is kept is rounded to a symmetric min-max grid of
the row; each column's error is fed into the columns that follow.
"""

from __future__ import annotations

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.grid import reciprocal, round_scale

GROUP = 4
KEPT = 2
_BLOCK = 128


def sparsegpt(
    target: torch.Tensor, curvature: Curvature | None, damping: float, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prunes and codes a matrix under Ĥ + λI.

    Args:
        target: float32 [N, K].
        curvature: Ĥ [K, K]; None prunes by magnitude and feeds nothing back.
        damping: λ relative to Ĥ's mean diagonal.
        bits: of a kept weight's code; code c stands for (c − 2^(bits − 1)) · scale.

    Returns:
        kept: bool [N, K], exactly two of every four columns (all of them in a last group of one or two).
        codes: uint8 [N, K], those of dropped columns mean nothing.
        scale: float32 [N], fp16-representable.
    """
    columns = target.shape[1]
    factor = torch.eye(columns, device=target.device) if curvature is None else curvature.feedback(damping)
    scale = min_max_scale(target, bits)
    inverse, zero = reciprocal(scale), 1 << (bits - 1)
    rest = target.T.clone(memory_format=torch.contiguous_format)
    if curvature is not None:
        rest[curvature.gram.diagonal() == 0] = 0  # inputs that never come
    kept = torch.ones(rest.shape, dtype=torch.bool, device=rest.device)
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=rest.device)
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        triangle = factor[begin:end, begin:end]
        errors = torch.empty_like(rest[begin:end])
        for i in range(end - begin):
            column = begin + i
            if column % GROUP == 0:
                _prune(rest, kept, triangle.diagonal()[i : i + GROUP], column)
            code = (rest[column] * inverse).round_().add_(zero).clamp_(0, (1 << bits) - 1)
            codes[column] = code
            decoded = code.sub_(zero).mul_(scale).mul_(kept[column])
            torch.div(rest[column] - decoded, triangle[i, i], out=errors[i])
            rest[column:end].addr_(triangle[i, i:], errors[i], alpha=-1)
        rest[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return kept.T.contiguous(), codes.T.contiguous(), scale


def min_max_scale(target: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the step [N] of a grid of 2^bits levels that spans ± the row's largest magnitude."""
    return round_scale(2 * target.abs().amax(dim=1) / ((1 << bits) - 1))


def _prune(rest: torch.Tensor, kept: torch.Tensor, pivots: torch.Tensor, begin: int) -> None:
    """Drops all but the two dearest columns of the group from `begin` on; `pivots` are U_kk of its columns."""
    width = pivots.shape[0]
    if width > KEPT:
        cost = rest[begin : begin + width].square() / pivots.square().unsqueeze(1)
        kept[begin : begin + width].scatter_(0, cost.topk(width - KEPT, dim=0, largest=False).indices, value=False)
