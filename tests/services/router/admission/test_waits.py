"""Expected waits against queues whose speed is known."""

from __future__ import annotations

import random

import pytest

from services.router.admission.waits import Throughput


def test_without_a_backlog_ends_tell_nothing() -> None:
    throughput = Throughput()
    for second in range(100):
        throughput.ended(float(second))
    assert throughput.rate(None) is None
    assert throughput.rate(7.0) == pytest.approx(7.0)


@pytest.mark.parametrize("true", [0.5, 12.0, 300.0])
def test_a_backlog_tells_the_rate(true: float) -> None:
    draw, now, throughput = random.Random(), 0.0, Throughput()
    throughput.backlog(now, waiting=True)
    while now < 60:
        now += draw.expovariate(true)
        throughput.ended(now)
    assert throughput.rate(None) == pytest.approx(true, rel=0.6 if true < 1 else 0.35)
    assert throughput.rate(true * 10) == pytest.approx(true * 1.8, rel=0.6)


def test_time_without_a_backlog_does_not_count() -> None:
    throughput, now = Throughput(), 0.0
    for _ in range(20):  # two seconds at 10/s, then an hour of peace
        throughput.backlog(now, waiting=True)
        for _ in range(20):
            now += 0.1
            throughput.ended(now)
        throughput.backlog(now, waiting=False)
        throughput.ended(now + 1800)
        now += 3600
    assert throughput.rate(None) == pytest.approx(10.0)
