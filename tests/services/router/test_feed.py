"""Arrivals of several workers become one order, each once."""

from __future__ import annotations

import random

from services.router.feed import SETTLE_SECONDS, Feed


def test_arrivals_come_out_settled_and_in_order_whoever_told_first() -> None:
    told = {w: sorted((random.randrange(100_000), f"m{random.randrange(3)}@1") for _ in range(50)) for w in "ab"}
    here, there = Feed(), Feed()
    for worker in "ab":
        here.take(worker, told[worker])
    there.take("b", told["b"][:20])
    there.take("a", told["a"])
    there.take("b", told["b"][20:])
    whole = sorted(told["a"] + told["b"])
    for now in (30.0, 80.0, 200.0):
        out = here.settled(now)
        assert out == there.settled(now)
        assert all(at <= now - SETTLE_SECONDS for at, _ in out)
        assert out == [(ms / 1000, r) for ms, r in whole[: len(out)]]
        whole = whole[len(out) :]
    assert whole == []


def test_a_session_that_begins_again_tells_nothing_twice() -> None:
    feed = Feed()
    feed.take("a", [(1000, "m@1"), (2000, "m@1")])
    feed.take("a", [(1000, "m@1"), (2000, "m@1"), (3000, "m@1")])
    feed.take("b", [(1000, "m@1")])
    assert [at for at, _ in feed.settled(100.0)] == [1.0, 1.0, 2.0, 3.0]
    assert feed.settled(100.0) == []
