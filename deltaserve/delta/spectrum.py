"""Best low-rank approximations of a delta, plain or under its inputs' Gram matrix."""

from __future__ import annotations

import torch

_OVERSAMPLED = 16
_POWER_ITERATIONS = 3
_EXACT = 1024  # matrices up to this size are decomposed whole
_SEED = 0


def factorise(delta: torch.Tensor, rank: int, root: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (left, right) of a given rank for which left · right is nearest to Δ under H = root · rootᵀ.

    With Δ · root = U S Vᵀ, left = U √S and right = √S Vᵀ root⁻¹, cut to the rank. Large matrices are first projected
    on the space of their largest singular vectors, found by power iteration from a fixed random start (Halko et al.
    2011, arXiv 0909.4061), so the same input gives the same output.

    Args:
        delta: Δ, float32 [N, K].
        rank: r, at most min(N, K).
        root: lower triangular factor [K, K]; None stands for I.

    Returns:
        float32 [N, r] and [r, K].
    """
    weighted = delta if root is None else delta @ root
    left, sizes, right = _largest(weighted, rank)
    spread = sizes.sqrt()
    right = spread.unsqueeze(1) * right
    if root is not None:
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return left * spread, right


def _largest(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns U [N, r], S [r], Vᵀ [r, K] of the r largest singular values."""
    width = rank + _OVERSAMPLED
    if min(matrix.shape) <= max(_EXACT, width):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vt[:rank]
