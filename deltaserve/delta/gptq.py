"""GPTQ: codes chosen column by column, each column's rounding error fed back into the columns not yet coded.

Frantar et al. 2022 (arXiv 2210.17323), blocked as there, all rows at once; scales per (row, group) are fitted when
their group is reached, to the fed-back weights, each column weighed by what its error will cost.
"""

from __future__ import annotations

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.grid import best_scale, code_of_zero, reciprocal

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
    # columns become rows, so that every step below works on contiguous memory; of one row contiguous() makes no copy
    rest = target.T.clone(memory_format=torch.contiguous_format)
    codes = torch.empty(rest.shape, dtype=torch.uint8, device=rest.device)
    scales: list[torch.Tensor] = []
    for begin, end in _blocks(rest.shape[0], group):
        pivots = factor.diagonal()[begin:end].unsqueeze(1)
        triangle = factor[begin:end, begin:end] / pivots
        errors = torch.empty_like(rest[begin:end])
        chosen = torch.empty_like(errors)
        for first in _starts(begin, end, group):
            if first % group == 0:
                scales.append(_group_scale(rest, factor, first, group, levels))
            scale, last = scales[-1], min(first - first % group + group, end)
            columns = slice(first - begin, last - begin)
            _code(rest[begin:end], columns, triangle, scale, levels, chosen, errors)
        codes[begin:end] = chosen
        rest[end:].addmm_((factor[begin:end, end:] / pivots).T, errors, alpha=-1)
    return codes.T.contiguous(), torch.stack(scales, dim=1)


def _code(
    rest: torch.Tensor,
    columns: slice,
    triangle: torch.Tensor,
    scale: torch.Tensor,
    levels: int,
    chosen: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """Codes columns that share a scale, one after the other: on a GPU its time is the number of its kernels, five each.

    Args:
        rest: what is left to code of a block, float32 [B, N]; errors are fed into the rows that follow.
        columns: the block's rows that are coded.
        triangle: the block's feedback, each row over its pivot, [B, B].
        scale: [N].
        levels: of the grid.
        chosen: takes codes, float32 [B, N].
        errors: takes errors, float32 [B, N].
    """
    inverse = reciprocal(scale)
    # moved so that code zero stands for zero: rounding and its error then take an operation less each
    rest[columns] += scale * code_of_zero(levels)
    for i in range(columns.start, columns.stop):
        torch.mul(rest[i], inverse, out=chosen[i]).round_().clamp_(0, levels - 1)
        torch.addcmul(rest[i], chosen[i], scale, value=-1, out=errors[i])
        rest[i + 1 :].addr_(triangle[i, i + 1 :], errors[i], alpha=-1)


def _starts(begin: int, end: int, group: int) -> list[int]:
    """Returns where in a block columns begin that share a scale."""
    return [begin, *range(begin + group - begin % group, end, group)]


def _blocks(columns: int, group: int) -> list[tuple[int, int]]:
    """Returns blocks that begin where groups begin as far as groups are small, so that scales see all feedback."""
    size = group if _BLOCK < group <= 2 * _BLOCK else max(1, _BLOCK // group) * group if group <= _BLOCK else _BLOCK
    return [(begin, min(begin + size, columns)) for begin in range(0, columns, size)]


def _group_scale(rest: torch.Tensor, factor: torch.Tensor, begin: int, group: int, levels: int) -> torch.Tensor:
    values = rest[begin : begin + group].T.contiguous()
    cost = factor.diagonal()[begin : begin + group].square().reciprocal()
    return best_scale(values, cost / cost.mean(), levels)
