"""Rates: unbiased from the first second, forgetting at their horizon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.rates import LONG_SECONDS, SHORT_SECONDS, ArrivalRate, RateBook, Rates


@pytest.mark.parametrize("horizon", [SHORT_SECONDS, LONG_SECONDS])
@pytest.mark.parametrize("seconds", [5, 60, 3000])
def test_a_steady_rate_is_told_as_it_is(horizon: float, seconds: int) -> None:
    rate = ArrivalRate(horizon, start=100.0)
    for number in range(seconds * 4):
        rate.add(100.0 + number / 4)
    assert rate.rate(100.0 + seconds) == pytest.approx(4.0, rel=0.05)


def test_an_old_burst_fades() -> None:
    book = RateBook(start=0.0)
    for _ in range(50):
        book.arrived("m", 1000.0)
    burst, later = book.rates("m", 1000.0), book.rates("m", 1060.0)
    assert burst.short_rate == pytest.approx(5.0)
    assert later.short_rate < 0.02
    assert later.long_rate == pytest.approx(burst.long_rate * 0.905, rel=0.05)
    assert later.total == 50


def test_in_flight_follows_ends() -> None:
    book = RateBook(start=0.0)
    book.arrived("m", 1.0)
    book.arrived("m", 2.0)
    book.ended("m")
    assert book.rates("m", 3.0).in_flight == 1
    assert book.rates("other", 3.0) == Rates()


@given(st.lists(st.floats(0, 1e4), max_size=60), st.floats(0.0, 1e3))
def test_rates_are_never_negative_and_never_above_what_came(gaps: list[float], wait: float) -> None:
    rate, now = ArrivalRate(SHORT_SECONDS, start=0.0), 0.0
    for gap in gaps:
        now += gap
        rate.add(now)
    # the youngest second counts as one, so n arrivals are at most n a second (and the bias of that second)
    assert 0.0 <= rate.rate(now + wait) <= len(gaps) * 1.06
