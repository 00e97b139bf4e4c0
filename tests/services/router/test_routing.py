"""Routing: residency against load, ties, room."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.costs import LoadCosts, Tier
from services.router.routing import WorkerView, choose, has_room, score

GB = 1 << 30


def worker(name: str, outstanding: int = 0, **fields: Any) -> WorkerView:
    values: dict[str, Any] = {"max_running": 8, "step_seconds": 0.02, "delta_bytes_free": 10 * GB}
    return WorkerView(name=name, base_fingerprint="b", outstanding=outstanding, **values | fields)


def chosen(workers: list[WorkerView], revision: str = "m@1", size: int = GB, backlog: int = 4) -> str | None:
    found = choose(workers, revision, size, backlog)
    return found.name if found else None


def test_the_worker_that_holds_the_delta_is_chosen() -> None:
    assert chosen([worker("cold"), worker("warm", 5, tiers={"m@1": Tier.DEVICE})]) == "warm"


def test_a_cold_idle_worker_beats_a_long_queue() -> None:
    busy = worker("warm", 11, service_seconds=30.0, tiers={"m@1": Tier.DEVICE})
    assert chosen([worker("cold"), busy], size=GB // 10) == "cold"


@pytest.mark.parametrize("colder", [Tier.STORE, Tier.DISK, Tier.HOST])
def test_hotter_tiers_are_better(colder: Tier) -> None:
    hotter = Tier(colder + 1)
    workers = [worker("a", tiers={"m@1": colder}), worker("b", tiers={"m@1": hotter})]
    assert chosen(workers) == "b"
    assert LoadCosts().expected(colder, GB) > LoadCosts().expected(hotter, GB)


def test_requests_of_a_cold_model_meet_on_one_worker() -> None:
    assert chosen([worker("a"), worker("b", 1, expected={"m@1"})]) == "b"


def test_room_without_eviction_is_better() -> None:
    assert chosen([worker("tight", delta_bytes_free=GB // 2), worker("roomy")]) == "roomy"


def test_the_base_and_warm_models_spread_by_load() -> None:
    both = [worker("a", 3, tiers={"m@1": Tier.DEVICE}), worker("b", 2, tiers={"m@1": Tier.DECODED})]
    assert chosen(both) == "b"
    assert chosen(both, revision="") == "b"


def test_full_workers_take_nothing() -> None:
    assert chosen([worker("a", 12), worker("b", 13)]) is None
    assert chosen([worker("a", 12), worker("b", 11)]) == "b"
    assert not has_room(worker("a", 12), 4)
    assert chosen([]) is None


def test_cold_models_spread_over_idle_workers_and_order_does_not_matter() -> None:
    workers = [worker(f"w{i}") for i in range(4)]
    places: Counter[str | None] = Counter()
    for number in range(200):
        random.Random(number).shuffle(workers)
        name = chosen(workers, f"m{number}@1")
        assert name == chosen(list(reversed(workers)), f"m{number}@1")
        places[name] += 1
    assert min(places.values()) > 25


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(list(Tier)), st.booleans()), min_size=1, max_size=6))
def test_the_choice_has_room_and_a_score_within_rounding_of_the_best(rows: list[tuple[int, Tier, bool]]) -> None:
    workers = [
        worker(f"w{i}", outstanding, tiers={"m@1": tier}, expected={"m@1"} if expected else frozenset())
        for i, (outstanding, tier, expected) in enumerate(rows)
    ]
    open_ = [w for w in workers if has_room(w, 4)]
    found = choose(workers, "m@1", GB, 4)
    assert (found is None) == (not open_)
    if found is not None:
        assert score(found, "m@1", GB) <= min(score(w, "m@1", GB) for w in open_) + 0.001
