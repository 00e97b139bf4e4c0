"""Models share slots by tokens, whoever asks for more or came first."""

from __future__ import annotations

import random

import pytest

from services.worker.engine.fairness import TokenCounters
from services.worker.engine.plan import Limits
from tests.services.worker.engine.test_scheduler import World

NARROW = Limits(running=4, step_tokens=64, deltas=4, wait_seconds=1000.0)


def generated(world: World, sequences) -> int:
    return sum(s.generated for s in sequences)


def test_who_comes_counts_as_served_as_who_was_admitted_last():
    counters = TokenCounters()
    counters.charge("a", 100)
    counters.admitted("a", 0)
    assert counters.of("new", 0) == 100
    assert counters.of("new", -1) == 0, "priorities have levels of their own"
    counters.charge("a", 1)
    assert counters.of("a", 0) == 101
    counters.clear()
    assert counters.of("a", 0) == 0


def test_counters_of_the_past_do_not_pile_up():
    counters = TokenCounters()
    for number in range(20_000):
        counters.charge(f"{number}", 1)
        counters.admitted(f"{number}", 0)
    assert len(counters._served) <= 5000


def test_a_crowd_of_one_model_does_not_hold_up_another():
    world = World(NARROW, blocks=4000)
    for _ in range(200):
        world.add("a", tokens=10)
    world.step()
    late = [world.add("b", tokens=10) for _ in range(2)]
    while any(s.id not in world.finished for s in late):
        world.step()
    assert world.now < 40, "first come, first served, it would be more than 400"


@pytest.mark.parametrize("seed", range(20))
def test_models_that_always_wait_get_the_same_number_of_tokens(seed):
    """Three models with requests of very different lengths and numbers; more of each than there are slots."""
    rng = random.Random(seed)
    world = World(NARROW, blocks=40_000)
    lengths = {"a": rng.randint(2, 6), "b": rng.randint(10, 40), "": rng.randint(5, 20)}
    sequences = {model: [] for model in lengths}
    for _ in range(400):
        for model, tokens in lengths.items():
            waiting = sum(s.revision == model for s in world.scheduler.waiting)
            for _ in range(rng.randint(1, 9) if waiting < 6 else 0):
                sequences[model].append(world.add(model, prompt=1, tokens=tokens))
        world.step()
    weighed = [2 * generated(world, found) + len(found) for found in sequences.values()]
    assert max(weighed) - min(weighed) <= 2 * 4 * (2 * 40 + 1), "the paper's bound: twice what can be under way"


def test_priority_goes_before_fairness():
    world = World(NARROW, blocks=4000)
    world.add("a", tokens=50)
    world.step()
    low = [world.add("b", tokens=5) for _ in range(6)]
    high = [world.add("a", tokens=5, priority=1) for _ in range(6)]
    world.run()
    assert max(world.first[s.id] for s in high) <= min(world.first[s.id] for s in low)


def test_what_is_computed_again_or_found_is_not_charged_again():
    world = World(Limits(running=4, step_tokens=64, deltas=4, wait_seconds=1000.0), blocks=7)
    sequences = [world.add("a", prompt=8, tokens=12), world.add("b", prompt=4, tokens=12)]
    preempted = 0
    while not world.finished:
        preempted += world.step().preempted
    assert preempted
    for s in sequences:
        if s.id not in world.finished:
            assert world.scheduler.served.of(s.revision, 0) == s.prompt_length + 2 * s.generated
