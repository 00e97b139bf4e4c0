"""The experts on the next gap: probabilities that come true, timers found, and what must hold of any history."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.gaps import Gaps, Histogram

HORIZON = 30.0


def history(times: list[float]) -> Gaps:
    gaps = Gaps(times[0], Histogram())
    for time in times[1:]:
        gaps.add(time)
    return gaps


def poisson(rng: random.Random, seconds: float) -> list[float]:
    mean, now, times = rng.uniform(20, 400), 0.0, []
    while now < seconds:
        now += rng.expovariate(1 / mean)
        times.append(now)
    return times


def bursts(rng: random.Random, seconds: float) -> list[float]:
    mean, now, times = rng.uniform(200, 900), 0.0, []
    while now < seconds:
        now += rng.expovariate(1 / mean)
        for _ in range(rng.randint(2, 8)):
            times.append(now)
            now += rng.expovariate(1.0)
    return times


def timer(rng: random.Random, seconds: float) -> list[float]:
    period, size, now, times = rng.choice([60.0, 300.0, 900.0]), rng.randint(1, 3), rng.uniform(0, 60), []
    while now < seconds:
        times += sorted(now + abs(rng.gauss(0, 1)) for _ in range(size))
        now += period
    return times


@pytest.mark.parametrize("process", [poisson, bursts, timer])
def test_probabilities_come_true(process: Callable[[random.Random, float], list[float]]) -> None:
    rng = random.Random()
    predicted: list[tuple[float, bool]] = []
    population = Histogram()
    for _ in range(60):
        times = process(rng, 12_000.0)
        gaps, place = Gaps(times[0], population), 1
        for query in range(int(times[0]) + 1, 11_900, 61):
            while place < len(times) and times[place] <= query:
                gaps.add(times[place])
                place += 1
            if gaps.events > 3:
                came = place < len(times) and times[place] <= query + HORIZON
                predicted.append((gaps.probability(query, HORIZON), came))
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        bucket = [pair for pair in predicted if low <= pair[0] < high]
        if len(bucket) > 300:
            expected = sum(p for p, _ in bucket) / len(bucket)
            found = sum(came for _, came in bucket) / len(bucket)
            # timers tick a little surer than their spread says, which is on the safe side
            assert expected - 0.12 < found < expected + (0.35 if process is timer else 0.15), (low, high)


@pytest.mark.parametrize("period", [60.0, 900.0, 21_600.0])
@pytest.mark.parametrize("size", [1, 4])
def test_a_timer_is_expected_when_it_is_due_and_not_before(period: float, size: int) -> None:
    times = [tick * period + i * 0.7 + random.uniform(0, 0.3) for tick in range(12) for i in range(size)]
    gaps = history(times)
    due = 12 * period
    assert gaps.probability(due - 0.05 * period, 0.1 * period) > 0.8
    assert gaps.probability(due - 0.5 * period, 0.3 * period) < 0.1
    assert gaps.weights[2] > 0.5


def test_a_stopped_timer_is_given_up() -> None:
    gaps = history([60.0 * tick for tick in range(30)])
    last = 60.0 * 29
    assert gaps.probability(last + 55, HORIZON) > 0.9
    assert gaps.probability(last + 600, HORIZON) < 0.3
    assert gaps.probability(last + 36_000, HORIZON) < 0.02


def test_one_request_says_little_about_the_next() -> None:
    population = Histogram()
    for _ in range(100):
        population.add(random.expovariate(1 / 20))
    gaps = Gaps(0.0, population)
    assert gaps.probability(1.0, HORIZON) > 0.3  # as others do
    assert gaps.probability(400.0, HORIZON) < 0.1  # longer than any of theirs: theirs say nothing


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=80), st.floats(0, 2e5), st.floats(0, 1e5), st.floats(0, 1e5))
def test_what_holds_of_any_history(steps: list[float], wait: float, first: float, more: float) -> None:
    now, times = 0.0, []
    for step in steps:
        now += step
        times.append(now)
    gaps = history(times)
    gaps.add(now - 5.0)  # out of order
    assert gaps.last == now
    assert sum(gaps.weights) == pytest.approx(1.0)
    one, two = gaps.probability(now + wait, first), gaps.probability(now + wait, first + more)
    assert 0.0 <= one <= two + 1e-9
    assert two <= 1.0
    assert gaps.probability(now + wait, 0.0) == pytest.approx(0.0, abs=1e-9)


def test_bins_fade_and_keep_their_sum() -> None:
    histogram = Histogram()
    for _ in range(1000):
        histogram.add(random.expovariate(1 / 50))
    assert histogram.total <= 65
    assert histogram.sums[-1] == pytest.approx(sum(histogram.counts))


def test_what_is_due_sooner_is_worth_more_though_both_are_due_within_the_horizon() -> None:
    gaps = history([300.0 * tick for tick in range(20)])
    due = 300.0 * 20
    waits = [gaps.soon(due - ahead, HORIZON) for ahead in (100.0, 45.0, 8.0)]
    assert waits[0] < 0.05
    assert 0.4 < waits[1] < 0.6  # within twice the horizon, not within half of it
    assert waits[2] > 0.9
