"""Row scales in closed form: least squares, or unbiased so that the coded delta's gain is one."""

from __future__ import annotations

import torch

from deltaserve.delta.calibration import Curvature, weighted

# An unbiased scale is at most this many times the least-squares one: beyond it a row's codes say so little about the
# row that the noise it would take to keep the gain outweighs the shrinkage.
MAX_BOOST = 3.0


def row_scale(delta: torch.Tensor, codes: torch.Tensor, curvature: Curvature | None, *, unbiased: bool) -> torch.Tensor:
    """Returns the scale s of each row for which s · codes stands best for delta.

    Least squares: (δᵀHq)/(qᵀHq). Unbiased: (δᵀHδ)/(δᵀHq), at most MAX_BOOST times the former. A row whose codes point
    away from it under H falls back to H = I.

    Args:
        delta: float32 [N, K].
        codes: q, float32 [N, K], what is stored, decoded with scale 1.
        curvature: H; None stands for I.
        unbiased: which of the two.

    Returns:
        float32 [N], not negative; 0 for rows of zeros.
    """
    image = delta if curvature is None else delta @ curvature.gram
    size, inner = (image * delta).sum(dim=1), (image * codes).sum(dim=1)
    scale = _scale(size, inner, weighted(codes, codes, curvature), unbiased)
    if curvature is None or bool((inner > 0).all()):
        return scale
    return torch.where(inner > 0, scale, row_scale(delta, codes, None, unbiased=unbiased))


def _scale(size: torch.Tensor, inner: torch.Tensor, power: torch.Tensor, unbiased: bool) -> torch.Tensor:
    least_squares = torch.where(power > 0, inner.clamp_min(0) / power, 0.0)
    if not unbiased:
        return least_squares
    exact = torch.where(inner > 0, size / inner, 0.0)
    return torch.minimum(exact, MAX_BOOST * least_squares)
