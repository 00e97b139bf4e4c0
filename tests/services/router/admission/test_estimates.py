"""Estimates come to what requests really take."""

from __future__ import annotations

import random

import pytest

from services.router.admission.estimates import Estimates, Size


def test_estimates_follow_what_a_models_requests_take() -> None:
    draw, estimates = random.Random(), Estimates()
    for _ in range(200):
        characters = draw.randint(50, 5000)
        size = Size(0, characters, None, 2)
        estimates.learn("m", size, characters // 5, 2 * draw.randint(30, 50))
    expected = estimates.tokens("m", Size(0, 1000, None, 2))
    assert expected == pytest.approx(200 + 80, rel=0.1)
    assert estimates.tokens("m", Size(0, 1000, 10, 1)) == pytest.approx(200 + 10, rel=0.1)
    assert estimates.tokens("m", Size(64, 0, 1, 1)) == pytest.approx(65)


def test_models_do_not_tell_of_each_other() -> None:
    estimates, size = Estimates(), Size(10, 0, None, 1)
    before = estimates.tokens("other", size)
    estimates.learn("m", size, 10, 5000)
    assert estimates.tokens("other", size) == before < estimates.tokens("m", size)
