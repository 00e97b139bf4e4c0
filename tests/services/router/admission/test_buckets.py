"""Token buckets against a simulation of what the words mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.admission.buckets import Bucket

amounts = st.floats(0.0, 50.0)
steps = st.lists(st.tuples(st.floats(0.0, 5.0), amounts), max_size=40)


@given(st.floats(0.1, 20.0), st.floats(1.0, 30.0), steps)
def test_never_more_passes_than_rate_and_burst_allow(rate: float, burst: float, arrivals: list) -> None:
    bucket, now, passed, largest = Bucket(rate, burst, 0.0), 0.0, 0.0, 0.0
    for gap, amount in arrivals:
        now += gap
        if bucket.wait(now, amount) == 0.0:
            bucket.take(now, amount)
            passed, largest = passed + amount, max(largest, amount)
    # one amount above the burst may leave a debt
    assert passed <= burst + rate * now + max(0.0, largest - burst) + 1e-6


@given(st.floats(0.1, 20.0), st.floats(1.0, 30.0), steps, amounts)
def test_whoever_waits_as_told_passes_and_not_before(rate: float, burst: float, arrivals: list, amount: float) -> None:
    bucket, now = Bucket(rate, burst, 0.0), 0.0
    for gap, taken in arrivals:
        now += gap
        bucket.take(now, taken)
    seconds = bucket.wait(now, amount)
    if seconds > 0.01:
        assert bucket.wait(now + seconds * 0.9, amount) > 0
    assert bucket.wait(now + seconds + 1e-6, amount) <= 1e-5


@given(st.floats(0.1, 20.0), st.floats(5.0, 30.0), st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_an_estimate_that_is_settled_leaves_what_the_real_amount_leaves(
    rate: float, burst: float, estimate: float, real: float
) -> None:
    settled, direct = Bucket(rate, burst, 0.0), Bucket(rate, burst, 0.0)
    settled.take(0.0, estimate)
    settled.take(0.0, real - estimate)
    direct.take(0.0, real)
    assert settled.level(0.0) == pytest.approx(direct.level(0.0))


def test_new_limits_keep_what_was_used() -> None:
    bucket = Bucket(1.0, 10.0, 0.0)
    bucket.take(0.0, 8.0)
    bucket.changed(2.0, 20.0, 1.0)
    assert bucket.level(1.0) == pytest.approx(13.0)
    assert bucket.wait(1.0, 15.0) == pytest.approx(1.0)
