"""The simulation behind ADR 10 shows what the ADR says, on other arrivals."""

from __future__ import annotations

import random

from benchmarks.fairness import POLICIES, SCENES, simulate


def test_turns_by_tokens_keep_a_light_key_from_waiting_and_weights_their_shares() -> None:
    seed = random.randrange(1 << 30)
    _, waits = simulate(SCENES["one key floods"], POLICIES["by tokens"], seed)
    _, before = simulate(SCENES["one key floods"], POLICIES["first come"], seed)
    assert waits["light"] < 5 < before["light"]
    shares, _ = simulate(SCENES["weights 3 and 1"], POLICIES["by tokens"], seed)
    assert 0.7 < shares["three"] < 0.8
    shares, _ = simulate(SCENES["equal requests, long and short answers"], POLICIES["by tokens"], seed)
    assert 0.42 < shares["long"] < 0.55
