"""Step times that are made up of known parts, with noise, and what is found in them."""

from __future__ import annotations

import random

import pytest

from services.worker.engine.pace import Pace


class Machine:
    """Steps of rest + a_delta · deltas + a_token · tokens seconds, each up to a tenth longer or shorter."""

    def __init__(self, pace: Pace, rest: float, a_delta: float, a_token: float, seed: int) -> None:
        self.pace = pace
        self.parts = (rest, a_delta, a_token)
        self.rng = random.Random(seed)
        self.now = 5.0

    def steps(self, count: int, waiting: int) -> None:
        """Makes steps of as many deltas as may run of those that wait; half of them with a chunk of a prompt."""
        for _ in range(count):
            deltas = min(self.pace.deltas, self.rng.randint(max(1, waiting - 3), waiting))
            tokens = self.rng.choice([0, self.rng.randint(2, 200)])
            self.pace.step(self.now, deltas, tokens, computed=True)
            rest, a_delta, a_token = self.parts
            self.now += (rest + a_delta * deltas + a_token * tokens) * self.rng.uniform(0.9, 1.1)


@pytest.mark.parametrize("seed", range(10))
def test_parts_of_the_time_are_found(seed):
    pace = Pace(0.0, 16)
    machine = Machine(pace, 0.010, 0.002, 0.0001, seed)
    machine.steps(1000, 8)
    a_delta, a_token = pace.slopes()
    assert a_delta == pytest.approx(0.002, rel=0.5)
    assert a_token == pytest.approx(0.0001, rel=0.25)
    assert pace.deltas == 16, "nothing is to be reached"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("goal", "rest", "a_delta", "wanted"),
    [
        (0.050, 0.010, 0.010, 4),  # 10 + 4 · 10 = 50 ms
        (0.050, 0.040, 0.008, 5),  # beyond the goal, but as much again as without deltas
        (0.050, 0.100, 0.300, 1),  # one may always run
        (0.050, 0.005, 0.001, 16),
    ],
)
def test_deltas_are_as_many_as_the_goal_allows(seed, goal, rest, a_delta, wanted):
    pace = Pace(goal, 16)
    machine = Machine(pace, rest, a_delta, 0.00001, seed)
    machine.steps(1000, 16)
    found = []
    for _ in range(50):
        machine.steps(16, 16)
        found.append(pace.deltas)
    assert sorted(found)[len(found) // 2] == pytest.approx(wanted, abs=max(1, wanted // 4))


def test_what_never_changes_explains_nothing():
    pace = Pace(0.01, 8)
    for step in range(500):
        pace.step(1.0 + 0.1 * step, 4, 0, computed=True)
    assert pace.slopes() == (0.0, 0.0)
    assert pace.deltas == 8
    assert pace.step_seconds == pytest.approx(0.1)


def test_pauses_are_not_steps():
    pace = Pace(0.01, 8)
    for round_ in range(50):
        begin = 100.0 * (round_ + 1)
        pace.step(begin, 1, 8, computed=True)
        pace.step(begin + 0.02, 0, 0, computed=False)
        pace.step(begin + 50, 0, 0, computed=False)
    assert pace.step_seconds == pytest.approx(0.02)
