"""How KL spreads over the places that it is measured at."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

EDGES = tuple(float(f"{10 ** (step / 4):.3g}") for step in range(-24, 5))
"""Edges between bins of KL, nats a token: four in a decade, from 1e-6 (about the noise of float32) to 10."""


@dataclass(frozen=True, slots=True)
class Spread:
    """KL over places, nats a token.

    Attributes:
        p50: the smallest KL that half of the places do not exceed.
        p99: the same for 99 of 100 places.
        counts: places in each bin: below EDGES[0], from EDGES[i - 1] up to EDGES[i], from EDGES[-1] on.
    """

    p50: float = 0.0
    p99: float = 0.0
    counts: tuple[int, ...] = (0,) * (len(EDGES) + 1)

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of one or more values; those that are not numbers count as infinite."""
        ordered = sorted(math.inf if math.isnan(value) else max(0.0, value) for value in values)
        counts = [0] * (len(EDGES) + 1)
        for value in ordered:
            counts[bisect_right(EDGES, value)] += 1
        p50, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
        return cls(p50, p99, tuple(counts))
