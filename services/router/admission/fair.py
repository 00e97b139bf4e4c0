"""Whose turn it is: weighted fair queueing by tokens over keys, and over the models of each key. Pure.

Start-time fair queueing (Goyal et al., SIGCOMM '96) on two levels, with what a request costs estimated when its turn
comes and corrected when it has ended, as the virtual token counters of Sheng et al. (OSDI '24) do. ADR 10 tells why.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

RESUMED = 1 << 40  # priority of what had its turn already: above all that clients may ask for


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request asks of the queue.

    Attributes:
        key: who pays.
        model: what for.
        weight: of the key.
        cost: expected, in tokens; more than 0.
        priority: higher goes first, whatever the shares.
    """

    key: str
    model: str
    weight: float = 1.0
    cost: float = 1.0
    priority: int = 0


class Meter:
    """Virtual tokens spent by each of several parties that share something.

    A party that comes back is lifted to the clock, where the party served last stood: nobody saves up turns by being
    idle, and nobody is punished for what was used while nobody else wanted it.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self._spent: dict[str, float] = {}

    def spent(self, name: str) -> float:
        """Returns where a party stands."""
        return self._spent.get(name, self.clock)

    def enter(self, name: str) -> None:
        """A party without requests gets one."""
        self._spent[name] = max(self.spent(name), self.clock)

    def serve(self, name: str, tokens: float) -> None:
        """It is a party's turn."""
        spent = self.spent(name)
        self.clock = max(self.clock, spent)
        self._spent[name] = spent + tokens

    def settle(self, name: str, tokens: float) -> None:
        """Corrects what a party was charged."""
        self._spent[name] = self.spent(name) + tokens

    def leave(self, name: str) -> None:
        """A party has no request left; forgotten if it would come back to the clock all the same."""
        if self._spent.get(name, math.inf) <= self.clock:
            del self._spent[name]


@dataclass(slots=True)
class _Flow(Generic[T]):
    """Requests of one model of one key that have the same priority."""

    entries: deque[tuple[T, Claim]] = field(default_factory=deque)
    cost: float = 0.0


@dataclass(slots=True)
class _Group(Generic[T]):
    """Requests of one key that have the same priority."""

    weight: float
    flows: dict[str, _Flow[T]] = field(default_factory=dict)
    cost: float = 0.0
    count: int = 0


class FairQueue(Generic[T]):
    """Requests that wait for the same workers.

    By priority first; then the key that spent least for its weight; of its models the one that spent least; then in
    order of arrival. Two keys that always have requests waiting differ in tokens served by weight by at most the
    largest request of each, and so do two models of a key.
    """

    def __init__(self) -> None:
        self._lanes: dict[int, dict[str, _Group[T]]] = {}
        self._claims: dict[int, Claim] = {}  # by id of the item
        self._counts: dict[str, int] = {}  # by key, over all priorities
        self._keys = Meter()
        self._models: dict[str, Meter] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[T]:
        """Yields what waits, in no order that matters."""
        for lane in self._lanes.values():
            for group in lane.values():
                for flow in group.flows.values():
                    yield from [item for item, _ in flow.entries]

    def __contains__(self, item: T) -> bool:
        return id(item) in self._claims

    def count(self, key: str) -> int:
        """Returns how many requests of a key wait."""
        return self._counts.get(key, 0)

    def push(self, item: T, claim: Claim) -> None:
        """Adds a request at the end of its model's line."""
        if not self.count(claim.key):
            self._keys.enter(claim.key)
        models = self._models.setdefault(claim.key, Meter())
        if not any(claim.model in lane[claim.key].flows for lane in self._lanes.values() if claim.key in lane):
            models.enter(claim.model)
        lane = self._lanes.setdefault(claim.priority, {})
        group = lane.setdefault(claim.key, _Group(claim.weight))
        flow = group.flows.setdefault(claim.model, _Flow())
        group.weight = claim.weight
        flow.entries.append((item, claim))
        flow.cost += claim.cost
        group.cost += claim.cost
        group.count += 1
        self._claims[id(item)] = claim
        self._counts[claim.key] = self.count(claim.key) + 1

    def peek(self) -> T | None:
        """Returns the request whose turn it is; None when nothing waits."""
        if not self._lanes:
            return None
        lane = self._lanes[max(self._lanes)]
        key = min(lane, key=self._keys.spent)  # among equals the one that waits longest
        models = self._models[key]
        return lane[key].flows[min(lane[key].flows, key=models.spent)].entries[0][0]

    def serve(self, item: T) -> None:
        """Takes out a request whose turn it is, at its key's expense; one of RESUMED was paid for before."""
        claim = self._claims[id(item)]
        if claim.priority != RESUMED:
            self._keys.serve(claim.key, claim.cost / claim.weight)
            self._models[claim.key].serve(claim.model, claim.cost)
        self.remove(item)

    def settle(self, claim: Claim, cost: float) -> None:
        """Corrects the cost of a request that was served by what it really was."""
        self._keys.settle(claim.key, (cost - claim.cost) / claim.weight)
        self._models.setdefault(claim.key, Meter()).settle(claim.model, cost - claim.cost)
        self._forget(claim)

    def remove(self, item: T) -> None:
        """Takes out a request that nobody waits for any more, at nobody's expense."""
        claim = self._claims.pop(id(item))
        lane = self._lanes[claim.priority]
        group = lane[claim.key]
        flow = group.flows[claim.model]
        index = next(i for i, (other, _) in enumerate(flow.entries) if other is item)
        del flow.entries[index]
        flow.cost -= claim.cost
        group.cost -= claim.cost
        group.count -= 1
        self._counts[claim.key] -= 1
        if not flow.entries:
            del group.flows[claim.model]
        if not group.flows:
            del lane[claim.key]
        if not lane:
            del self._lanes[claim.priority]
        self._forget(claim)

    def ahead(self, claim: Claim) -> int:
        """Returns about how many of those that wait would have their turn before a request that came now.

        Costs one look at every key and every model of the claim's key, not at every request.
        """
        before = sum(
            g.count for priority, lane in self._lanes.items() if priority > claim.priority for g in lane.values()
        )
        lane = self._lanes.get(claim.priority, {})
        group: _Group[T] = lane.get(claim.key) or _Group(claim.weight)
        own = group.flows.get(claim.model)
        models = self._models.get(claim.key) or Meter()
        tag = max(models.spent(claim.model), models.clock) + (own.cost if own else 0.0)
        tokens, requests = 0.0, 0.0
        for model, flow in group.flows.items():
            share = 1.0 if flow is own else _share(tag - models.spent(model), flow.cost)
            tokens, requests = tokens + share * flow.cost, requests + share * len(flow.entries)
        tag = max(self._keys.spent(claim.key), self._keys.clock) + tokens / claim.weight
        for key, other in lane.items():
            if key != claim.key:
                requests += _share((tag - self._keys.spent(key)) * other.weight, other.cost) * other.count
        return before + round(requests)

    def order(self) -> list[T]:
        """Returns all requests by their turns, as they would come if no other came and all costs were right."""
        turns: list[T] = []
        paid: dict[tuple[str, str], float] = {}  # in lanes above, by key and model ("": all of them)
        for priority in sorted(self._lanes, reverse=True):
            lane = self._lanes[priority]
            lines = []
            for key, group in lane.items():
                spent = self._keys.spent(key) + paid.get((key, ""), 0.0) / group.weight
                lines.append((self._line(key, group, paid), group.weight, spent))
            turns += [item for item, _ in _merged(lines)]
            for key, group in lane.items() if priority != RESUMED else ():
                paid[key, ""] = paid.get((key, ""), 0.0) + group.cost
                for model, flow in group.flows.items():
                    paid[key, model] = paid.get((key, model), 0.0) + flow.cost
        return turns

    def crowder(self, claim: Claim) -> T | None:
        """Returns whom a full queue should turn away in place of a request that came now; None: that one itself.

        It is the last request of the lowest priority of the key that has most waiting for its weight, if that is of a
        lower priority, or of the same and its key would still have no fewer waiting than the claim's.
        """
        lowest = min(self._lanes, default=claim.priority + 1)
        if lowest > claim.priority:
            return None
        lane = self._lanes[lowest]
        key = max(lane, key=lambda k: lane[k].count / lane[k].weight)
        fuller = (self.count(key) - 1) / lane[key].weight >= (self.count(claim.key) + 1) / claim.weight
        if lowest == claim.priority and (key == claim.key or not fuller):
            return None
        flow = max(lane[key].flows.values(), key=lambda f: len(f.entries))
        return flow.entries[-1][0]

    def _line(self, key: str, group: _Group[T], paid: dict[tuple[str, str], float]) -> list[tuple[T, float]]:
        models = self._models[key]
        lines = []
        for model, flow in group.flows.items():
            costs = [(item, claim.cost) for item, claim in flow.entries]
            lines.append((costs, 1.0, models.spent(model) + paid.get((key, model), 0.0)))
        return _merged(lines)

    def _forget(self, claim: Claim) -> None:
        """Drops what is known of parties that would begin anew all the same."""
        if not any(claim.model in lane[claim.key].flows for lane in self._lanes.values() if claim.key in lane):
            self._models[claim.key].leave(claim.model)
        if not self.count(claim.key):
            self._counts.pop(claim.key, None)
            self._keys.leave(claim.key)


def _share(tokens: float, cost: float) -> float:
    """Returns which part of a line of `cost` comes before `tokens` of it were served."""
    return min(1.0, max(0.0, tokens / cost))


def _merged(lines: list[tuple[list[tuple[T, float]], float, float]]) -> list[tuple[T, float]]:
    """Merges lines of (item, cost), each with its weight and where its party stands, by least spent."""
    heap = [(spent, number, 0) for number, (line, _, spent) in enumerate(lines) if line]
    heapq.heapify(heap)
    merged = []
    while heap:
        spent, number, index = heap[0]
        line, weight, _ = lines[number]
        merged.append(line[index])
        if index + 1 < len(line):
            heapq.heapreplace(heap, (spent + line[index][1] / weight, number, index + 1))
        else:
            heapq.heappop(heap)
    return merged
