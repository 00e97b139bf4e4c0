"""GPTQ against plain rounding, against its definition written naively, and on awkward shapes."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.calibration import Curvature, relative_error
from deltaserve.delta.gptq import gptq
from deltaserve.delta.grid import best_scale, code_of_zero, quantise
from deltaserve.delta.sparsegpt import sparsegpt


def correlated_gram(columns: int, tokens: int = 512) -> torch.Tensor:
    torch.manual_seed(1)
    inputs = torch.randn(tokens, columns) @ (torch.eye(columns) + 0.3 * torch.randn(columns, columns))
    return inputs.T @ inputs / tokens


def decode(codes: torch.Tensor, scale: torch.Tensor, levels: int, group: int) -> torch.Tensor:
    wide = scale.repeat_interleave(group, dim=1)[:, : codes.shape[1]]
    return (codes.float() - code_of_zero(levels)) * wide


def naive_gptq(target: torch.Tensor, gram: torch.Tensor, damping: float, group: int, levels: int) -> torch.Tensor:
    """One column after the other in float64, the inverse kept explicitly."""
    rest = target.double().clone()
    columns = rest.shape[1]
    inverse = torch.linalg.inv(gram.double() + damping * gram.diagonal().mean() * torch.eye(columns))
    factor = torch.linalg.cholesky(inverse, upper=True)
    decoded = torch.zeros_like(rest)
    for k in range(columns):
        if k % group == 0:
            cost = factor.diagonal()[k : k + group].square().reciprocal().float()
            scale = best_scale(rest[:, k : k + group].float(), cost / cost.mean(), levels).double()
        decoded[:, k] = (quantise(rest[:, k], scale, levels) - code_of_zero(levels)) * scale
        error = (rest[:, k] - decoded[:, k]) / factor[k, k]
        rest[:, k:] -= error[:, None] * factor[k, k:]
    return decoded.float()


@pytest.mark.parametrize(("columns", "group"), [(40, 16), (300, 300), (300, 48), (257, 128), (320, 160)])
def test_equals_its_definition(columns: int, group: int) -> None:
    torch.manual_seed(0)
    target, gram = torch.randn(6, columns), correlated_gram(columns)
    codes, scale = gptq(target, Curvature(gram), 0.1, group, 8)
    naive = naive_gptq(target, gram, 0.1, group, 8)
    same = (decode(codes, scale, 8, group) - naive).abs() < 1e-3
    assert float(same.float().mean()) > 0.98  # a rounding tie may send one row another way


@pytest.mark.parametrize(("levels", "bound"), [(3, 0.65), (4, 0.6), (8, 0.6), (16, 0.6)])
def test_beats_rounding_under_the_gram_matrix(levels: int, bound: float) -> None:
    torch.manual_seed(0)
    target, curvature = torch.randn(32, 256), Curvature(correlated_gram(256))
    codes, scale = gptq(target, curvature, 0.01, 128, levels)
    groups = target.view(32, 2, 128)
    plain_scale = best_scale(groups, None, levels)
    plain = quantise(groups, plain_scale[..., None], levels).view(32, 256)
    fed_back = relative_error(target, decode(codes, scale, levels, 128), curvature)
    rounded = relative_error(target, decode(plain, plain_scale, levels, 128), curvature)
    assert fed_back < bound * rounded


def test_without_end_of_damping_is_rounding() -> None:
    torch.manual_seed(0)
    target = torch.randn(8, 64)
    codes, scale = gptq(target, Curvature(correlated_gram(64)), 1e6, 64, 16)
    assert torch.allclose(scale[:, 0], best_scale(target, None, 16), rtol=1e-2)
    assert float((codes == quantise(target, scale, 16)).float().mean()) > 0.999


@pytest.mark.parametrize("gram", ["zero", "rank one", "dead columns"])
def test_degenerate_gram_matrices_give_finite_codes(gram: str) -> None:
    matrix = torch.zeros(48, 48)
    if gram == "rank one":
        matrix = torch.ones(48, 48)
    if gram == "dead columns":
        matrix = correlated_gram(48)
        matrix[5:9] = 0
        matrix[:, 5:9] = 0
    target = torch.randn(4, 48)
    codes, scale = gptq(target, Curvature(matrix), 0.01, 16, 16)
    assert bool(torch.isfinite(scale).all())
    assert float((decode(codes, scale, 16, 16) - target).abs().max()) < 4


@pytest.mark.parametrize("shape", [(1, 40), (5, 1), (3, 40)])
def test_leaves_its_input_alone(shape: tuple[int, int]) -> None:
    target = torch.randn(shape)
    before = target.clone()
    gptq(target, Curvature(correlated_gram(shape[1])), 0.1, shape[1], 4)
    sparsegpt(target, Curvature(correlated_gram(shape[1])), 0.01, 2)
    assert torch.equal(target, before)
