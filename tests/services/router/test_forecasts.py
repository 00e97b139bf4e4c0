"""The book of forecasts: bounded, indifferent to who asks, heirs, bursts, the next request."""

from __future__ import annotations

import random

import pytest

from services.router.forecasts import Forecast, Forecasts, is_burst


def filled(seed: int, names: int = 5) -> tuple[Forecasts, float]:
    rng, book, now = random.Random(seed), Forecasts(0.0), 0.0
    for _ in range(200):
        now += rng.expovariate(0.2)
        book.arrived(f"m{rng.randrange(names)}@1", now)
    return book, now


def test_the_book_is_bounded_and_keeps_what_was_asked_for_last() -> None:
    book = Forecasts(0.0, most=3)
    for number, name in enumerate("abcadb"):
        book.arrived(name, float(number))
    assert list(book.names()) == ["a", "d", "b"]
    assert book.forecast("c", 6.0, 30.0) == Forecast()
    assert book.probability("c", 6.0, 30.0) == 0.0
    assert len(book) == 3


def test_who_asked_before_does_not_matter() -> None:
    seed = random.randrange(1 << 30)
    one, now = filled(seed)
    two, _ = filled(seed)
    for _ in range(300):
        two.probability(f"m{random.randrange(5)}@1", now + random.uniform(0, 500), random.choice([5.0, 30.0]))
    for wait in (0.0, 3.3, 47.1, 501.0):
        for name in one.names():
            assert one.forecast(name, now + wait, 30.0) == two.forecast(name, now + wait, 30.0)


def test_a_new_revision_inherits_and_then_goes_its_own_way() -> None:
    book, now = filled(3)
    book.inherit("m1@2", "m1@1")
    assert book.forecast("m1@2", now, 30.0) == book.forecast("m1@1", now, 30.0)
    book.arrived("m1@2", now + 1)
    assert book.forecast("m1@2", now + 1, 30.0).short_rate > book.forecast("m1@1", now + 1, 30.0).short_rate
    before = book.forecast("m2@1", now + 1, 30.0)
    book.inherit("m2@1", "m1@1")
    assert book.forecast("m2@1", now + 1, 30.0) == before
    book.inherit("x@2", "x@1")
    assert "x@2" not in book


def test_a_burst_is_provided_for() -> None:
    book = Forecasts(0.0)
    for number in range(50):
        book.arrived("m", number * 20.0)
    quiet = book.forecast("m", 1000.0, 30.0)
    assert not quiet.bursting
    assert quiet.rate == quiet.long_rate
    for number in range(20):
        book.arrived("m", 1000.0 + number / 10)
    loud = book.forecast("m", 1002.0, 30.0)
    assert loud.bursting
    assert loud.rate == loud.short_rate > 10 * quiet.rate


@pytest.mark.parametrize("expected", [0.0, 1.0, 25.0])
def test_chance_is_no_burst(expected: float) -> None:
    assert not is_burst(expected + 2, expected)
    assert is_burst(expected + 3.1 * max(1.0, expected**0.5) + 0.1, expected)


def test_the_next_request_of_a_timer_is_told() -> None:
    book = Forecasts(0.0)
    for tick in range(20):
        book.arrived("m", tick * 600.0)
    assert book.next_seconds("m", 19 * 600.0 + 100) == pytest.approx(500, rel=0.1)
    assert book.next_seconds("nobody", 0.0) is None
    book.arrived("once", 20 * 600.0)
    assert book.next_seconds("once", 40 * 86400.0) is None
