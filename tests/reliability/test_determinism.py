"""A request's tokens do not depend on its neighbours, greedy and seeded, whatever is preempted or chunked meanwhile."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.reliability_cases.neighbours import compare


@pytest.mark.parametrize(
    "settings",
    [
        {"decoded_bytes": 0, "max_step_tokens": 64},
        {"max_step_tokens": 16, "max_running": 4, "max_deltas": 2, "max_wait_seconds": 0.01},
    ],
    ids=["packed", "merged, small steps, turns"],
)
def test_tokens_do_not_depend_on_neighbours(tmp_path: Path, settings: dict[str, Any]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = compare(tmp_path, random.Random(), rounds=1, **settings)
    finally:
        torch.set_num_threads(threads)
    assert found.sequences == 12
    assert found.other_tokens == 0
    assert found.largest <= 1e-3  # logits are not the same bits: GEMMs of other shapes add up in another order
