"""Samples of rows against sums over all rows."""

import pytest
import torch

from services.compressor.pipeline.row_sample import RowSample, by_rank, evenly


def heavy_tailed(rows: int) -> torch.Tensor:
    """Costs of which few rows hold nearly all, as tokens of a text do."""
    ranks = torch.randperm(rows).double() + 1
    return (ranks**-1.3 * torch.empty(rows).log_normal_(0, 0.5)).float()


def estimated(sample: RowSample, values: torch.Tensor, use: int = 0) -> float:
    return float((values[sample.rows] * sample.weights[use]).sum(dtype=torch.float64))


@pytest.mark.parametrize("rows", [5, 300, 2000, 128_256])
def test_blocks_cover_all_rows_once(rows: int):
    cost = heavy_tailed(rows)
    sample = by_rank([cost], certain=100, per_octave=50)
    assert isinstance(sample.rows, torch.Tensor)
    assert len(set(sample.rows.tolist())) == len(sample.rows) == len(sample.ends)
    assert int(sample.ends[-1]) == rows
    assert len(sample.rows) <= 100 + 50 * 11
    dearest = cost.argsort(descending=True, stable=True)[:100]
    assert sample.rows[:100].tolist() == dearest.tolist()
    assert sample.weights[0][:100].tolist() == [1.0] * min(rows, 100)


def test_the_cost_itself_is_met_for_every_use():
    uses = [heavy_tailed(5000), heavy_tailed(5000)]
    sample = by_rank(uses, certain=64, per_octave=64)
    for use, cost in enumerate(uses):
        assert estimated(sample, cost, use) == pytest.approx(float(cost.sum()), rel=1e-4)


def test_costs_with_noise_are_met_within_a_percent():
    cost = heavy_tailed(128_256)
    error = cost * torch.empty_like(cost).uniform_(0.2, 0.4)
    assert estimated(by_rank([cost]), error) == pytest.approx(float(error.sum()), rel=0.01)


def test_counts_of_dearest_rows():
    sample = by_rank([heavy_tailed(1600)], certain=100, per_octave=50)
    assert [sample.count(rows) for rows in (0, 1, 100, 102, 200, 400, 1600)] == [
        1,
        1,
        100,
        101,
        150,
        200,
        len(sample.ends),
    ]


def test_rows_that_cost_nothing():
    cost = torch.zeros(3000)
    cost[7] = 1.0
    sample = by_rank([cost, torch.zeros(3000)], certain=16, per_octave=16)
    assert estimated(sample, cost) == pytest.approx(1.0)
    assert all(bool(torch.isfinite(weight).all()) for weight in sample.weights)


def test_evenly_spread_rows_stand_for_their_share():
    power = torch.rand(1000)
    sample = evenly([power, power * 3], about=100)
    assert len(power[sample.rows]) == 100
    for use, values in enumerate((power, power * 3)):
        assert estimated(sample, values, use) == pytest.approx(float(values.sum()), rel=1e-4)
    assert sample.count(50) == 50
