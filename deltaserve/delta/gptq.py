"""GPTQ: codes chosen column by column, each column's rounding error fed back into the columns not yet coded.

Frantar et al. 2022 (arXiv 2210.17323), blocked as there, all rows at once; scales per (row, group) are fitted when
their group is reached, to the fed-back weights, each column weighed by what its error will cost.
"""

from __future__ import annotations

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.grid import best_scale, code_of_zero, nearest, reciprocal

_BLOCK = 128


def gptq(
    target: torch.Tensor, curvature: Curvature, damping: float, group: int, levels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes a matrix under Ĥ + λI.

    Args:
        target: float32 [N, K].
        curvature: Ĥ [K, K].
        damping: λ relative to Ĥ's mean diagonal; more of it trusts the calibration less, and without end is rounding.
        group: columns that share a scale, 1 to K; the last group may be smaller.
        levels: of the grid, see deltaserve.delta.grid.

    Returns:
        codes uint8 [N, K], and scales float32 [N, ceil(K / group)], fp16-representable.
    """
    factor = curvature.feedback(damping)
    rest = target.T.contiguous()  # columns become rows: every step below works on contiguous memory
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=rest.device)
    scales: list[torch.Tensor] = []
    inverse = rest.new_zeros(())
    for begin, end in _blocks(rest.shape[0], group):
        triangle = factor[begin:end, begin:end]
        errors = torch.empty_like(rest[begin:end])
        for i in range(end - begin):
            column = begin + i
            if column % group == 0:
                scales.append(_group_scale(rest, factor, column, group, levels))
                inverse = reciprocal(scales[-1])
            # on a GPU the time of this loop is the number of its kernels
            code = nearest(rest[column], inverse, levels)
            codes[column] = code
            decoded = code.sub_(code_of_zero(levels)).mul_(scales[-1])
            torch.div(rest[column] - decoded, triangle[i, i], out=errors[i])
            rest[column:end].addr_(triangle[i, i:], errors[i], alpha=-1)
        rest[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous(), torch.stack(scales, dim=1)


def _blocks(columns: int, group: int) -> list[tuple[int, int]]:
    """Returns blocks that begin where groups begin as far as groups are small, so that scales see all feedback."""
    size = group if _BLOCK < group <= 2 * _BLOCK else max(1, _BLOCK // group) * group if group <= _BLOCK else _BLOCK
    return [(begin, min(begin + size, columns)) for begin in range(0, columns, size)]


def _group_scale(rest: torch.Tensor, factor: torch.Tensor, begin: int, group: int, levels: int) -> torch.Tensor:
    values = rest[begin : begin + group].T.contiguous()
    cost = factor.diagonal()[begin : begin + group].square().reciprocal()
    return best_scale(values, cost / cost.mean(), levels)
