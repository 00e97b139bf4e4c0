"""The fair queue: shares, order, priorities, corrections, and that its books are right whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.admission.fair import RESUMED, Claim, FairQueue

seeds = st.integers(0, 1 << 30)


class Asked:
    """A request."""

    def __init__(self, claim: Claim, number: int) -> None:
        self.claim = claim
        self.number = number


def turn(queue: FairQueue[Asked]) -> Asked:
    item = queue.peek()
    assert item is not None
    queue.serve(item)
    return item


def push(queue: FairQueue[Asked], number: int, **fields: object) -> Asked:
    item = Asked(Claim(**fields), number)  # type: ignore[arg-type]
    queue.push(item, item.claim)
    return item


@given(seeds, st.lists(st.floats(0.2, 8.0), min_size=2, max_size=5))
@settings(deadline=None)
def test_keys_that_always_wait_get_tokens_by_weight(seed: int, weights: list[float]) -> None:
    draw = random.Random(seed)
    queue: FairQueue[Asked] = FairQueue()
    keys = {f"k{i}": weight for i, weight in enumerate(weights)}
    numbers, served, largest = count(), Counter[str](), 0.0

    def ask(key: str) -> None:
        nonlocal largest
        cost = draw.uniform(1, 500)
        largest = max(largest, cost / keys[key])
        push(queue, next(numbers), key=key, model=draw.choice("ab"), weight=keys[key], cost=cost)

    for key in keys:
        for _ in range(draw.randint(2, 6)):
            ask(key)
    for _ in range(300):
        item = turn(queue)
        served[item.claim.key] += item.claim.cost
        ask(item.claim.key)
        per_weight = [served[key] / weight for key, weight in keys.items()]
        assert max(per_weight) - min(per_weight) <= 2 * largest + 1e-6


@given(seeds)
@settings(deadline=None)
def test_models_of_a_key_share_alike_however_many_requests_they_have(seed: int) -> None:
    draw = random.Random(seed)
    queue: FairQueue[Asked] = FairQueue()
    models = [f"m{i}" for i in range(draw.randint(2, 6))]
    numbers, served = count(), Counter[str]()
    for model in models:
        for _ in range(draw.randint(1, 30)):
            push(queue, next(numbers), key="k", model=model, cost=draw.uniform(1, 100))
    while True:
        item = turn(queue)
        served[item.claim.model] += item.claim.cost
        left = {other.claim.model for other in queue}
        if len(left) < len(models):
            break
        assert max(served[m] for m in models) - min(served[m] for m in models) <= 200


@given(seeds)
@settings(deadline=None)
def test_whoever_was_idle_neither_saved_up_nor_pays_for_others(seed: int) -> None:
    draw = random.Random(seed)
    queue: FairQueue[Asked] = FairQueue()
    numbers = count()
    for _ in range(draw.randint(10, 200)):  # one key has everything to itself
        push(queue, next(numbers), key="busy", model="m", cost=draw.uniform(1, 100))
        if draw.random() < 0.5:
            turn(queue)
    while len(queue) < 60:
        push(queue, next(numbers), key="busy", model="m", cost=100.0)
    for _ in range(60):
        push(queue, next(numbers), key="late", model="m", cost=100.0)
    served = Counter[str]()
    for _ in range(60):
        item = turn(queue)
        served[item.claim.key] += item.claim.cost
        assert abs(served["late"] - served["busy"]) <= 200


@given(seeds)
@settings(deadline=None)
def test_a_key_pays_for_what_it_really_used(seed: int) -> None:
    """One of two keys claims far too little; once its requests were settled it gets no more than its half."""
    draw = random.Random(seed)
    queue: FairQueue[Asked] = FairQueue()
    numbers, used, running = count(), Counter[str](), []
    for key in ("honest", "low"):
        for _ in range(4):
            push(queue, next(numbers), key=key, model="m", cost=100.0 if key == "honest" else 1.0)
    for _ in range(400):
        item = turn(queue)
        push(queue, next(numbers), key=item.claim.key, model="m", cost=item.claim.cost)
        running.append(item)
        if len(running) > 3:
            ended = running.pop(draw.randrange(len(running)))
            real = draw.uniform(50, 150)
            used[ended.claim.key] += real
            queue.settle(ended.claim, real)
    assert abs(used["honest"] - used["low"]) <= 150 * 8


@given(seeds)
@settings(deadline=None)
def test_books_balance_whatever_happens(seed: int) -> None:
    """Against a plain list: nothing is lost, doubled or served before a higher priority, lines keep their order."""
    draw = random.Random(seed)
    queue: FairQueue[Asked] = FairQueue()
    waiting: list[Asked] = []
    numbers = count()
    for _ in range(200):
        what = draw.random()
        if what < 0.55 or not waiting:
            waiting.append(
                push(
                    queue, next(numbers), key=draw.choice("xyz"), model=draw.choice("abc"),
                    weight=draw.choice([1, 2.5]),
                    cost=draw.uniform(1, 50), priority=draw.choice([-1, 0, 0, 0, 3, RESUMED]),
                )
            )  # fmt: skip
        elif what < 0.85:
            assert queue.order()[0] is queue.peek()
            item = turn(queue)
            assert item.claim.priority == max(other.claim.priority for other in waiting)
            line = [o for o in waiting if (o.claim.key, o.claim.model, o.claim.priority) ==
                    (item.claim.key, item.claim.model, item.claim.priority)]  # fmt: skip
            assert item.number == min(other.number for other in line)
            waiting.remove(item)
            if draw.random() < 0.5:
                queue.settle(item.claim, draw.uniform(0, 80))
        else:
            item = draw.choice(waiting)
            queue.remove(item)
            assert item not in queue
            waiting.remove(item)
        assert len(queue) == len(waiting)
        assert {id(i) for i in queue} == {id(i) for i in waiting} == {id(i) for i in queue.order()}
        for key in "xyz":
            assert queue.count(key) == sum(other.claim.key == key for other in waiting)
    while waiting:
        expected = queue.order()
        assert turn(queue) is expected[0]
        waiting.remove(expected[0])
    assert queue.peek() is None


@given(seeds)
@settings(deadline=None)
def test_the_order_told_is_the_order_kept(seed: int) -> None:
    draw = random.Random(seed)
    queue: FairQueue[Asked] = FairQueue()
    for number in range(draw.randint(1, 60)):
        push(
            queue, number, key=draw.choice("xyz"), model=draw.choice("abc"), cost=draw.uniform(1, 50),
            priority=draw.choice([0, 0, 1]),
        )  # fmt: skip
        if draw.random() < 0.2:
            turn(queue)
    told = queue.order()
    kept = [turn(queue) for _ in range(len(told))]
    assert [i.number for i in told] == [i.number for i in kept]


@given(seeds)
@settings(deadline=None)
def test_the_place_told_at_once_is_about_the_one_in_the_order(seed: int) -> None:
    draw = random.Random(seed)
    queue: FairQueue[Asked] = FairQueue()
    keys = "xyz"[: draw.randint(1, 3)]
    for number in range(draw.randint(0, 80)):
        push(queue, number, key=draw.choice(keys), model=draw.choice("ab"), cost=draw.uniform(40, 60))
        if draw.random() < 0.3:
            turn(queue)
    claim = Claim(draw.choice(keys), draw.choice("ab"), 1.0, 50.0)
    told = queue.ahead(claim)
    item = Asked(claim, 1000)
    queue.push(item, claim)
    assert abs(told - queue.order().index(item)) <= 6


def test_a_full_queue_turns_away_the_key_that_has_most_for_its_weight() -> None:
    queue: FairQueue[Asked] = FairQueue()
    crowd = [push(queue, n, key="hog", model="m", weight=1.0) for n in range(6)]
    heavy = [push(queue, 10 + n, key="heavy", model="m", weight=10.0) for n in range(8)]
    assert queue.crowder(Claim("new", "m")) is crowd[-1]
    assert queue.crowder(Claim("hog", "m")) is None
    assert queue.crowder(Claim("hog", "m", priority=1)) is crowd[-1]
    assert queue.crowder(Claim("new", "m", priority=-1)) is None
    for item in crowd[1:]:
        queue.remove(item)
    assert queue.crowder(Claim("new", "m")) is None  # it would have as much as whom it turned away
    assert heavy[0] in queue


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_what_is_resumed_goes_first_and_is_not_paid_for_twice(weight: float) -> None:
    queue: FairQueue[Asked] = FairQueue()
    for number in range(4):
        push(queue, number, key="a", model="m", cost=10.0)
    resumed = push(queue, 9, key="b", model="m", weight=weight, cost=1e6, priority=RESUMED)
    other = push(queue, 10, key="b", model="m", weight=weight, cost=10.0)
    assert turn(queue) is resumed
    assert other in {turn(queue), turn(queue)}
