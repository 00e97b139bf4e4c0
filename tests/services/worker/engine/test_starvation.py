"""No sequence waits for its delta's turn for longer than the configured bound, over many seeds."""

from __future__ import annotations

import random

import pytest

from services.worker.engine.plan import Limits
from tests.services.worker.engine.test_scheduler import World

SEEDS = 120
SECONDS = 150


def bound(wait: float, deltas: int, turns: int) -> float:
    """What `turns` promises: until one starves, then a turn for every round of others, and a step for every switch."""
    return wait * (1 + -(-deltas // turns)) + deltas + 2


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_wait_is_longer_than_the_bound(seed):
    """Arrivals never stop, a few models get nearly all of them, and lengths differ by two orders of magnitude."""
    rng = random.Random(seed)
    names = "abcdefghij"[: rng.randint(2, 10)]
    turns, wait = rng.randint(1, 4), rng.choice([0.0, 1.0, 4.0, 10.0])
    world = World(Limits(running=10_000, step_tokens=40_000, deltas=turns, wait_seconds=wait), blocks=60_000)
    world.resident = set(names)
    weights = [1 / (1 + rank) ** rng.uniform(0, 3) for rank in range(len(names))]
    most = bound(wait, len(names), turns)
    for _ in range(SECONDS):
        for revision in rng.choices(names, weights, k=rng.choice([0, 0, 1, 3])):
            world.add(revision, rng.randint(1, 30), rng.choice([1, 10, 100]))
        world.step()
        assert all(world.now - s.waiting_since <= most for s in world.scheduler.waiting)


@pytest.mark.parametrize("seed", range(20))
def test_it_holds_while_the_number_of_deltas_changes(seed):
    rng = random.Random(1000 + seed)
    wait = rng.choice([1.0, 4.0])
    world = World(Limits(running=10_000, step_tokens=40_000, deltas=4, wait_seconds=wait), blocks=60_000)
    world.resident = set("abcdef")
    for _ in range(SECONDS):
        if rng.random() < 0.1:
            world.scheduler.turns.allow(rng.randint(1, 4))
        for revision in rng.choices("abcdef", k=rng.choice([0, 1, 2])):
            world.add(revision, rng.randint(1, 30), rng.choice([1, 10, 100]))
        world.step()
        assert all(world.now - s.waiting_since <= bound(wait, 6, 1) for s in world.scheduler.waiting)
