"""The symmetric grid of the int and ternary codecs, and the scale that fits it best to a group of weights.

Code c of L levels stands for (c − (L − 1)/2) · scale: evenly spaced levels around zero, which is one of them only for
odd L.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

FP16_MAX = 65504.0

# Step of the best grid for unit Gaussian values (Max 1960): where the search for a scale begins.
_GAUSSIAN_STEP = {2: 1.596, 3: 1.224, 4: 0.9957, 8: 0.5860, 16: 0.3352}
_FACTORS = tuple(0.3 * 1.15**i for i in range(16))  # 0.3 to 2.4 of the Gaussian step
_NEAR = (0.91, 0.94, 0.97, 1.03, 1.06, 1.1)  # of the best so far: at 4 bits the error has several minima
_REFINEMENTS = 3
_AT_ONCE = 1 << 21  # values: with all multiples of the scale they take 128 MB


def code_of_zero(levels: int) -> float:
    """Returns the code that stands for zero, or would: (levels − 1)/2."""
    return (levels - 1) / 2


def quantise(values: torch.Tensor, scale: torch.Tensor, levels: int) -> torch.Tensor:
    """Returns the nearest codes, float32 like `values`; `scale` broadcasts, and zero scales give any code."""
    return nearest(values, reciprocal(scale), levels)


def reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """Returns 1 / scale, 0 where the scale is 0."""
    return torch.where(scale > 0, 1.0 / scale, 0.0)


def nearest(values: torch.Tensor, inverse: torch.Tensor, levels: int) -> torch.Tensor:
    """Does what `quantise` does, given the reciprocal of the scale."""
    return (values * inverse).add_(code_of_zero(levels)).round_().clamp_(0, levels - 1)


def round_scale(scale: torch.Tensor) -> torch.Tensor:
    """Returns the nearest finite fp16 value, as float32; negative and NaN become 0."""
    return scale.nan_to_num(0.0, FP16_MAX, 0.0).clamp_(0, FP16_MAX).half().float()


def best_scale(values: torch.Tensor, weights: torch.Tensor | None, levels: int) -> torch.Tensor:
    """Returns the scale that minimises the (weighted) squared error of each group.

    A geometric search, coarse and then near the best, brackets the minimum; alternating nearest codes and the
    least-squares scale for them then descends to it.

    Args:
        values: float32 [..., g], groups along the last dimension.
        weights: float32, broadcastable to `values`, not negative; None for all ones.
        levels: of the grid: 2, 3, 4, 8 or 16.

    Returns:
        float32 [...], fp16-representable, 0 for a group of zeros.
    """
    step = values.square().mean(dim=-1).sqrt_() * _GAUSSIAN_STEP[levels]
    best = round_scale(step)
    least = _error(values, best, weights, levels)
    for factors in (_FACTORS, _NEAR):
        best, least = _best_of(values, step if factors is _FACTORS else best, factors, best, least, weights, levels)
    for _ in range(_REFINEMENTS):
        best, least = _keep_better(values, _least_squares(values, best, weights, levels), best, least, weights, levels)
    return best


def _best_of(
    values: torch.Tensor,
    middle: torch.Tensor,
    factors: Sequence[float],
    best: torch.Tensor,
    least: torch.Tensor,
    weights: torch.Tensor | None,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the best of some multiples of `middle` and what was best before, with its error; the first of equals.

    Small matrices are tried with all multiples at once: on a GPU they take as long as their kernels take to launch.
    """
    if values.numel() > _AT_ONCE:
        for factor in factors:
            best, least = _keep_better(values, middle * factor, best, least, weights, levels)
        return best, least
    multiples = torch.tensor(factors, device=values.device).view(-1, *[1] * middle.dim())
    candidates = round_scale(middle * multiples)
    errors = _error(values, candidates, weights, levels)
    first = errors.nan_to_num(torch.inf).argmin(dim=0, keepdim=True)
    error, candidate = errors.gather(0, first).squeeze(0), candidates.gather(0, first).squeeze(0)
    better = error < least
    return torch.where(better, candidate, best), torch.where(better, error, least)


def _keep_better(
    values: torch.Tensor,
    candidate: torch.Tensor,
    best: torch.Tensor,
    least: torch.Tensor,
    weights: torch.Tensor | None,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    candidate = round_scale(candidate)
    error = _error(values, candidate, weights, levels)
    better = error < least
    return torch.where(better, candidate, best), torch.where(better, error, least)


def _error(values: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor | None, levels: int) -> torch.Tensor:
    wide = scale.unsqueeze(-1)
    error = quantise(values, wide, levels).sub_(code_of_zero(levels)).mul_(wide).sub_(values).square_()
    return (error if weights is None else error.mul_(weights)).sum(dim=-1)


def _least_squares(
    values: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor | None, levels: int
) -> torch.Tensor:
    codes = quantise(values, scale.unsqueeze(-1), levels).sub_(code_of_zero(levels))
    heavy = codes if weights is None else codes * weights
    return (heavy * values).sum(dim=-1) / (heavy * codes).sum(dim=-1)
