"""Quotas and bounds: what passes, what is told, and that the books come out even."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaserve.errors import OverloadedError, QuotaError
from services.router.admission.estimates import Size
from services.router.admission.gate import Gate, QueueLimits, check_wait
from services.router.admission.keys import Caller, KeyBook, Limits, Party

SIZE = Size(10, 0, 90, 1)  # 100 tokens


def gate(models: dict[str, Limits] | None = None, **limits: int) -> Gate:
    return Gate(QueueLimits(**({"total": 100} | limits)), KeyBook(models=models or {}), 0.0)


def test_a_request_quota_says_when_to_come_again() -> None:
    door, caller = gate(), Caller("k", Party(requests_per_second=0.5, burst_seconds=4))
    claim = door.claim(caller, "m", SIZE, 0)
    for _ in range(2):
        door.check(caller, claim, 0.0)
        door.take(caller, claim, 0.0)
    with pytest.raises(QuotaError) as caught:
        door.check(caller, claim, 0.0)
    assert caught.value.retry_seconds == pytest.approx(2.0)
    assert caught.value.subject == "key:k/requests_per_second"
    door.check(caller, claim, 2.0)
    assert door.quotas.keys["k"].used.refused == 1


def test_a_models_quota_holds_over_all_keys() -> None:
    door = gate({"m": Limits(tokens_per_second=20, burst_seconds=10)})
    for number in range(2):
        caller = Caller(f"k{number}", Party())
        claim = door.claim(caller, "m", SIZE, 0)
        door.check(caller, claim, 0.0)
        door.take(caller, claim, 0.0)
    with pytest.raises(QuotaError, match="model m"):
        door.check(caller, claim, 0.0)
    door.check(caller, door.claim(caller, "other", SIZE, 0), 0.0)


@given(st.integers(0, 1 << 30))
def test_in_the_end_what_was_really_used_was_paid(seed: int) -> None:
    draw = random.Random(seed)
    rate = draw.uniform(50, 500)
    door, caller = gate(), Caller("k", Party(tokens_per_second=rate, burst_seconds=10))
    used, now, running = 0, 0.0, []
    for _ in range(100):
        now += draw.uniform(0, 0.1)
        claim = door.claim(caller, "m", Size(0, draw.randint(1, 2000), draw.choice([None, 5, 500]), 1), 0)
        door.take(caller, claim, now)
        running.append(claim)
        if draw.random() < 0.8:
            tokens = draw.randint(0, 300)
            used += tokens
            door.settle(caller, running.pop(draw.randrange(len(running))), tokens, now)
    for claim in running:
        door.settle(caller, claim, 0, now)
    account = door.quotas.keys["k"]
    assert (account.used.tokens, account.used.running, account.used.requests) == (used, 0, 100)
    left = account.left("tokens", now)
    assert left is not None
    assert left <= rate * 10 + 1e-6
    assert left >= rate * 10 - used - 1e-6


def test_new_limits_hold_for_accounts_that_exist() -> None:
    door, caller = gate(), Caller("k", Party(requests_per_second=100))
    claim = door.claim(caller, "m", SIZE, 0)
    door.take(caller, claim, 0.0)
    slower = Caller("k", Party(requests_per_second=0.1, burst_seconds=10))
    door.quotas.replace(KeyBook({"h": slower}, None, {"m": Limits(max_queued=0)}), 0.0)
    with pytest.raises(QuotaError):
        door.check(slower, claim, 0.0)
    with pytest.raises(OverloadedError, match="limit 0"):
        door.check_lines(slower, claim, None, 0.0)


def test_lines_are_bounded_by_key_and_by_model() -> None:
    door = gate(key=2, model=3)
    callers = [Caller(name, Party()) for name in ("a", "b")]
    claims = [door.claim(caller, "m", SIZE, 0) for caller in callers]
    for _ in range(2):
        door.queued(callers[0], claims[0], 1, 0.0)
    with pytest.raises(QuotaError) as own:
        door.check_lines(callers[0], claims[0], 7.5, 0.0)
    assert (own.value.retry_seconds, own.value.subject) == (7.5, "key:a/max_queued")
    door.check_lines(callers[1], claims[1], None, 0.0)
    door.queued(callers[1], claims[1], 1, 0.0)
    with pytest.raises(OverloadedError) as others:
        door.check_lines(callers[1], claims[1], None, 0.0)
    assert others.value.retry_seconds == 1.0


def test_whoever_would_wait_longer_than_they_want_is_told_at_once() -> None:
    check_wait(None, 1.0)
    check_wait(5.0, None)
    check_wait(0.5, 0.5)
    with pytest.raises(OverloadedError) as caught:
        check_wait(12.0, 2.0)
    assert caught.value.retry_seconds == 10.0
    assert float(caught.value.metadata["expected_wait_seconds"]) == 12.0
