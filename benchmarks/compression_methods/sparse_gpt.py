"""2:4 pruning and quantisation of one matrix with error feedback, as ΔCompress does it.

After SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): columns are coded from left to right; of every 4 the two
of least w² / U²ᵢᵢ are pruned when the first of them is reached, U upper triangular with UᵀU = H⁻¹; what is kept is
rounded; and each column's error is fed back into the columns to its right. Columns go by blocks of 128, with the same
result.
"""

from __future__ import annotations

import torch

BLOCK = 128
DAMPING = 0.01  # of H's mean diagonal
GROUP = 4
PRUNED = 2


def compress(delta: torch.Tensor, gram: torch.Tensor, bits: int, *, feedback: bool = True) -> torch.Tensor:
    """Codes a matrix.

    Args:
        delta: Δ, float32 or float64 [N, K], K a multiple of 4.
        gram: H, [K, K], second moments of the inputs.
        bits: of a kept value, 2 to 8.
        feedback: False only for comparison: columns are coded one by one, nothing is made up for.

    Returns:
        Δ̂ [N, K]: of every 4 adjacent values in a row at most 2 are not zero.
    """
    if delta.shape[1] % GROUP:
        raise ValueError(f"delta has {delta.shape[1]} columns; expected a multiple of {GROUP}")
    factor, dead = _factor(gram)
    scale = row_scale(delta, bits)
    rest = delta.clone()
    rest[:, dead] = 0
    for begin in range(0, rest.shape[1], BLOCK):
        block = slice(begin, begin + BLOCK)
        coded, errors = _code_block(rest[:, block], factor[block, block], scale, bits, feedback=feedback)
        rest[:, block] = coded
        if feedback:
            rest[:, begin + BLOCK :] -= errors @ factor[block, begin + BLOCK :]
    return rest


def _code_block(
    weights: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, bits: int, *, feedback: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes and errors over pivots, both [N, block], of one block's weights."""
    rest = weights.clone()
    coded, errors = torch.zeros_like(rest), torch.zeros_like(rest)
    pruned = torch.zeros_like(rest, dtype=torch.bool)
    pivots = factor.diagonal()
    for i in range(rest.shape[1]):
        if i % GROUP == 0:
            group = slice(i, i + GROUP)
            saliency = rest[:, group].square() / pivots[group].square()
            least = saliency.topk(PRUNED, dim=1, largest=False).indices
            pruned[:, group] = pruned[:, group].scatter(1, least, value=True)
        coded[:, i] = quantise(rest[:, i].masked_fill(pruned[:, i], 0), scale, bits)
        errors[:, i] = (rest[:, i] - coded[:, i]) / pivots[i]
        if feedback:
            rest[:, i:] -= torch.outer(errors[:, i], factor[i, i:])
    return coded, errors


def row_scale(delta: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the step of each row [N], an fp16 value: symmetric min-max, 2^bits − 1 steps from −max |Δ| to max |Δ|."""
    scale = (2 * delta.abs().amax(dim=1) / ((1 << bits) - 1)).half().to(delta.dtype)
    return torch.where(scale > 0, scale, 1.0)


def quantise(values: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns values [N] on the grid of their rows: integers from −2^(bits−1) to 2^(bits−1) − 1 times the step."""
    half = 1 << (bits - 1)
    return (values / scale).round().clamp(-half, half - 1) * scale


def _factor(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns U of the damped H, and which inputs [K] never were anything but zero."""
    damped = gram.clone()
    dead = damped.diagonal() == 0
    damped.diagonal()[dead] = 1
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor, dead
