"""Calibration algebra against its definitions."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.calibration import Curvature, Moments, asymmetric_target, relative_error
from deltaserve.errors import InvalidArgumentError


def test_moments_accumulate_over_chunks() -> None:
    served, tuned = torch.randn(50, 12), torch.randn(50, 12)
    moments = Moments(12)
    for begin in (0, 20, 40):
        moments.add(served[begin : begin + 20].view(-1, 2, 12), tuned[begin : begin + 20].view(-1, 2, 12))
    assert moments.tokens == 50
    assert torch.allclose(moments.gram, served.T @ served / 50, atol=1e-5)
    assert moments.cross is not None
    assert torch.allclose(moments.cross, (tuned - served).T @ served / 50, atol=1e-5)


def test_moments_without_cross() -> None:
    moments = Moments(4, cross=False)
    moments.add(torch.ones(3, 4, dtype=torch.bfloat16))
    assert moments.cross is None
    assert torch.equal(moments.gram, torch.ones(4, 4))
    with pytest.raises(ValueError, match="no inputs of the fine-tune"):
        Moments(4).add(torch.ones(3, 4))


def test_asymmetric_target_minimises_the_output_error() -> None:
    torch.manual_seed(0)
    base, tuned = torch.randn(5, 8).double(), torch.randn(5, 8).double()
    served, inputs = torch.randn(100, 8).double(), torch.randn(100, 8).double()
    inputs = served + 0.1 * inputs
    gram, cross = served.T @ served / 100, (inputs - served).T @ served / 100
    target = asymmetric_target(tuned - base, tuned, cross, Curvature(gram), 0.0)
    wanted = torch.linalg.lstsq(served, inputs @ tuned.T - served @ base.T).solution.T
    assert torch.allclose(target, wanted, atol=1e-6)


def test_asymmetric_target_is_the_delta_when_nothing_was_lost() -> None:
    delta, tuned = torch.randn(5, 8), torch.randn(5, 8)
    target = asymmetric_target(delta, tuned, torch.zeros(8, 8), Curvature(torch.eye(8)), 0.01)
    assert torch.equal(target, delta)


def test_feedback_factor_is_of_the_inverse() -> None:
    inputs = torch.randn(64, 20)
    gram = inputs.T @ inputs / 64
    factor = Curvature(gram).feedback(0.1)
    damped = gram + 0.1 * gram.diagonal().mean() * torch.eye(20)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(20), atol=1e-4)


def test_factors_are_kept_per_damping() -> None:
    curvature = Curvature(torch.eye(4))
    assert curvature.feedback(0.1) is curvature.feedback(0.1)
    assert not torch.equal(curvature.solver(0.1), curvature.solver(0.2))


def test_factorises_what_float32_cannot() -> None:
    column = torch.logspace(-4, 4, 40)[:, None]
    curvature = Curvature(column @ column.T)  # rank one, without damping
    assert bool(torch.isfinite(curvature.feedback(0.0)).all())
    assert bool(torch.isfinite(curvature.solver(0.0)).all())


def test_refuses_overflowed_calibration() -> None:
    gram = torch.eye(3)
    gram[1, 2] = float("nan")
    with pytest.raises(InvalidArgumentError, match="NaN"):
        Curvature(gram)


def test_relative_error_is_the_trace_ratio() -> None:
    delta, decoded, inputs = torch.randn(4, 6), torch.randn(4, 6), torch.randn(30, 6)
    gram = inputs.T @ inputs / 30
    expected = ((delta - decoded) @ inputs.T).square().sum() / (delta @ inputs.T).square().sum()
    assert relative_error(delta, decoded, Curvature(gram)) == pytest.approx(float(expected), rel=1e-4)
    assert relative_error(delta, delta, None) == 0
    assert relative_error(torch.zeros(2, 2), torch.zeros(2, 2), None) == 0
    assert relative_error(torch.zeros(2, 2), torch.ones(2, 2), None) == float("inf")
