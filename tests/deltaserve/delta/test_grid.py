"""The grid's scale against brute force, and against the published errors for Gaussian values."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.grid import best_scale, code_of_zero, quantise, round_scale

SHAPES = ("gaussian", "uniform", "laplace", "spike", "two-sided")


def sample(shape: str, rows: int, columns: int) -> torch.Tensor:
    torch.manual_seed(0)
    if shape == "uniform":
        return torch.rand(rows, columns) - 0.5
    if shape == "laplace":
        return torch.distributions.Laplace(0.0, 1.0).sample((rows, columns))
    values = torch.randn(rows, columns)
    if shape == "spike":
        values[:, 0] = 30
    if shape == "two-sided":
        values = values.sign() + 0.1 * values
    return values


def error(values: torch.Tensor, scale: torch.Tensor, levels: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    decoded = (quantise(values, scale[:, None], levels) - code_of_zero(levels)) * scale[:, None]
    squares = (decoded - values).square()
    return (squares if weights is None else squares * weights).sum(dim=1)


def brute_force(values: torch.Tensor, levels: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    most = 2 * values.abs().amax(dim=1)
    return torch.stack([error(values, most * i / 3000, levels, weights) for i in range(1, 3000)]).amin(dim=0)


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_is_as_good_as_brute_force(shape: str, levels: int) -> None:
    values = sample(shape, 12, 128)
    found, best = error(values, best_scale(values, None, levels), levels), brute_force(values, levels)
    if (shape, levels) == ("two-sided", 16):  # two narrow humps: minima as narrow as needles
        assert float(found.sum()) <= 1.15 * float(best.sum())
        return
    assert float(found.sum()) <= 1.002 * float(best.sum())
    assert bool((found <= 1.05 * best).all())


@pytest.mark.parametrize("levels", [3, 4, 16])
def test_weighted_scale_is_as_good_as_brute_force(levels: int) -> None:
    values, weights = sample("gaussian", 12, 128), torch.rand(128).pow(4)
    found, best = (
        error(values, best_scale(values, weights, levels), levels, weights),
        brute_force(values, levels, weights),
    )
    assert float(found.sum()) <= 1.02 * float(best.sum())


@pytest.mark.parametrize(("levels", "expected"), [(2, 0.3634), (3, 0.1902), (4, 0.1188), (8, 0.03744), (16, 0.01154)])
def test_relative_error_of_gaussian_values(levels: int, expected: float) -> None:
    values = sample("gaussian", 16, 8192)
    relative = error(values, best_scale(values, None, levels), levels).sum() / values.square().sum()
    assert float(relative) == pytest.approx(expected, rel=0.02)


def test_one_bit_scale_level_is_the_mean_magnitude() -> None:
    values = sample("laplace", 8, 64)
    assert torch.allclose(best_scale(values, None, 2) / 2, values.abs().mean(dim=1), rtol=2e-3)


def test_extreme_values_give_finite_scales() -> None:
    values = torch.tensor([[0.0] * 4, [1e30, -1e30, 0, 1], [1e-30] * 4, [1e-7, -1e-7, 2e-7, 0]])
    scale = best_scale(values, None, 4)
    assert bool(torch.isfinite(scale).all())
    assert scale[0] == 0
    assert scale[1] == 65504
    assert torch.equal(round_scale(torch.tensor([-1.0, float("nan"), float("inf")])), torch.tensor([0.0, 0.0, 65504.0]))
