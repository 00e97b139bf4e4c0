"""Scheduler, residency, routing and placement together under faults: 500 seeds, each of them another world."""

import random

from benchmarks.reliability_cases.simulation import longest_pause, run

SEEDS = 500


def test_nothing_is_lost_starved_evicted_in_use_or_over_budget() -> None:
    first = random.randrange(1 << 32)  # another 500 worlds each time; a failure names its seed
    ended = 0
    for seed in range(first, first + SEEDS):
        try:
            fleet = run(seed)
        except AssertionError as error:
            raise AssertionError(f"benchmarks.reliability_cases.simulation.run({seed}): {error}") from error
        ended += fleet.ended.total()
    assert ended > 5 * SEEDS


def test_no_delta_waits_longer_for_its_turn_than_is_stated() -> None:
    first = random.randrange(1 << 32)
    for seed in range(first, first + 40):
        longest, most = longest_pause(seed)
        assert longest <= most, f"seed {seed}"
