"""Which tensor gets how many bits: least cost under a budget, or least bytes under a cost. Pure.

Costs of tensors add up: each candidate's is the KL that its error is predicted to cause. For a price λ of a byte every
tensor takes the candidate of least cost + λ · bytes; the λ that just meets the limit is found by bisection over the
prices at which some tensor's choice changes. What a budget then leaves is spent greedily, best gain a byte first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from services.compressor.pipeline.choices import Choice


class Candidate(msgspec.Struct, frozen=True):
    """One way to code a tensor: bytes stored, and predicted KL in nats a token."""

    choice: Choice
    bytes: int
    cost: float


Table = Mapping[str, Sequence[Candidate]]
"""Candidates of every tensor that may be coded, by its name."""

Allocation = dict[str, Candidate]
"""The chosen candidate of every tensor of a table."""


def under_budget(table: Table, budget: int) -> Allocation:
    """Returns the allocation of least cost that stores at most `budget` bytes; the smallest one if none does."""
    hulls = {name: hull(candidates) for name, candidates in table.items()}
    prices = _prices(hulls)
    low, high = 0, len(prices)  # prices ascend: the higher the smaller
    while low < high:
        middle = (low + high) // 2
        if stored(_at_price(hulls, prices[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    chosen = _at_price(hulls, prices[low]) if low < len(prices) else {name: points[0] for name, points in hulls.items()}
    return _spend(table, chosen, budget)


def under_cost(table: Table, limit: float) -> Allocation:
    """Returns the allocation of least bytes whose cost is at most `limit`; the one of least cost if none is."""
    hulls = {name: hull(candidates) for name, candidates in table.items()}
    prices = _prices(hulls)
    low, high = 0, len(prices)
    while low < high:
        middle = (low + high) // 2
        if cost(_at_price(hulls, prices[middle])) <= limit:
            low = middle + 1
        else:
            high = middle
    return _at_price(hulls, prices[low - 1]) if low else {name: points[-1] for name, points in hulls.items()}


def stored(allocation: Allocation) -> int:
    """Returns the bytes that an allocation stores."""
    return sum(candidate.bytes for candidate in allocation.values())


def cost(allocation: Allocation) -> float:
    """Returns the KL that is predicted for an allocation, nats a token."""
    return sum(candidate.cost for candidate in allocation.values())


def hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates on the lower convex hull of cost over bytes, in ascending order of bytes."""
    points: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.bytes, c.cost)):
        if points and candidate.cost >= points[-1].cost:
            continue
        while len(points) > 1 and _gain(points[-2], candidate) >= _gain(points[-2], points[-1]):
            points.pop()
        points.append(candidate)
    return points


def _gain(small: Candidate, large: Candidate) -> float:
    """Returns the cost that a byte saves from one candidate to a larger one."""
    return (small.cost - large.cost) / max(large.bytes - small.bytes, 1)


def _prices(hulls: Mapping[str, Sequence[Candidate]]) -> list[float]:
    """Returns the prices of a byte at which some tensor's choice changes, ascending."""
    gains = (_gain(a, b) for points in hulls.values() for a, b in pairwise(points))
    return sorted(set(gains))


def _at_price(hulls: Mapping[str, Sequence[Candidate]], price: float) -> Allocation:
    """Returns each tensor's largest candidate of which the last byte saves more than its price."""
    chosen: Allocation = {}
    for name, points in hulls.items():
        taken = points[0]
        for point in points[1:]:
            if _gain(taken, point) <= price:
                break
            taken = point
        chosen[name] = taken
    return chosen


def _spend(table: Table, chosen: Allocation, budget: int) -> Allocation:
    """Upgrades single tensors, best gain a byte first, as long as any upgrade fits."""
    result, left = dict(chosen), budget - stored(chosen)
    while True:
        best: tuple[float, str, Candidate] | None = None
        for name, taken in result.items():
            for candidate in table[name]:
                if taken.bytes < candidate.bytes <= taken.bytes + left and candidate.cost < taken.cost:
                    gain = _gain(taken, candidate)
                    if best is None or gain > best[0]:
                        best = gain, name, candidate
        if best is None:
            return result
        _, name, candidate = best
        left -= candidate.bytes - result[name].bytes
        result[name] = candidate
