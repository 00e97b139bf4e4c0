"""Percentiles by nearest rank: every figure is one that was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec


class Distribution(msgspec.Struct):
    """A quantity over many requests or tokens, in seconds; all None when there was none.

    Attributes:
        count: how many there were.
        mean, p50, p90, p99, most: of them.
    """

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    most: float | None = None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns the least value that at least `percent` % of the values do not exceed.

    Args:
        ordered: ascending, not empty.
        percent: 0 to 100; 0 is the least value.
    """
    return ordered[max(0, math.ceil(percent / 100 * len(ordered) - 1e-9) - 1)]


def distribution(values: Iterable[float]) -> Distribution:
    """Returns the figures of values in any order."""
    ordered = sorted(values)
    if not ordered:
        return Distribution()
    p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
    return Distribution(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def curve(values: Iterable[float]) -> list[float]:
    """Returns the percentiles 0, 1, … 100; empty when there are no values."""
    ordered = sorted(values)
    return [percentile(ordered, percent) for percent in range(101)] if ordered else []
