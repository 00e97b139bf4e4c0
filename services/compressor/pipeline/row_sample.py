"""Some rows of a matrix that stand for all of them when errors are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ALL = 8192
"""Matrices of a vocabulary with at most so many rows are measured whole."""

CERTAIN = 2048
"""Dearest rows that are measured themselves: nearly all that an error costs lies in them."""

PER_OCTAVE = 512
"""Rows measured of ranks CERTAIN to 2 · CERTAIN, of the next twice as many, and so on."""


@dataclass(frozen=True, slots=True)
class RowSample:
    """Rows [M] of a matrix [N, K], each of which stands for a block of them.

    Attributes:
        rows: indexes the measured rows.
        weights: for each way in which the matrix is used, what a measured row's cost is multiplied by, float32 [M].
        ends: in the order of `rows`, how many rows they stand for up to and with each, int64 [M] on the CPU.
    """

    rows: slice | torch.Tensor
    weights: list[torch.Tensor]
    ends: torch.Tensor

    def count(self, rows: int) -> int:
        """Returns how many measured rows stand for the dearest `rows` ones, at least one."""
        return max(1, int((self.ends <= rows).sum()))


def evenly(powers: Sequence[torch.Tensor], about: int) -> RowSample:
    """Returns about so many rows, evenly spread; they stand for all by their share of the power [N] of each use."""
    total = powers[0].shape[0]
    rows = slice(0, None, -(-total // about))
    shares = [p.sum() / p[rows].sum().clamp_min(1e-30) for p in powers]
    weights = [share.expand(p[rows].shape) for share, p in zip(shares, powers, strict=True)]
    return RowSample(rows, weights, torch.arange(1, weights[0].shape[0] + 1))


def by_rank(costs: Sequence[torch.Tensor], certain: int = CERTAIN, per_octave: int = PER_OCTAVE) -> RowSample:
    """Returns the dearest rows and a sample of the others, ever thinner the less they cost.

    Rows are sorted by cost and cut into blocks, those of the dearest one row long; the middle row of a block is
    measured, and its relative error is taken for that of the whole block. Sums are made on the CPU, where they are
    added up in a fixed order.

    Args:
        costs: for each use of the matrix, what it would cost to leave each row of Δ out, float32 [N].
        certain: rows in blocks of their own.
        per_octave: blocks of each doubling of the rank.
    """
    each = [cost.double().cpu() for cost in costs]
    order = torch.stack(each).sum(dim=0).argsort(descending=True, stable=True)
    ends = torch.tensor(_ends(order.numel(), certain, per_octave))
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    rows = order[(begins + ends) // 2]
    weights = []
    for cost in each:
        sums = torch.cat([cost.new_zeros(1), cost[order].cumsum(dim=0)])
        blocks = (sums[ends] - sums[begins]).clamp_min(0)
        single = (ends - begins) == 1
        weight = torch.where(single, 1.0, torch.where(cost[rows] > 0, blocks / cost[rows], (ends - begins).double()))
        weights.append(weight.float().to(costs[0].device))
    return RowSample(rows.to(costs[0].device), weights, ends)


def _ends(total: int, certain: int, per_octave: int) -> list[int]:
    """Returns the ends of all blocks, ascending, the last one `total`."""
    ends = list(range(1, min(certain, total) + 1))
    begin = certain
    while begin < total:
        ends += [begin + begin * i // per_octave for i in range(1, per_octave + 1)]
        begin *= 2
    return sorted({min(end, total) for end in ends})
