import math
import random
from itertools import pairwise

import pytest

from services.compressor.pipeline.spread import EDGES, Spread


def test_edges_are_fixed():
    """Reports of different jobs compare bin by bin; whoever changes these changes the report's version."""
    assert len(EDGES) == 29
    assert EDGES[0] == 1e-6
    assert EDGES[-1] == 10
    assert list(EDGES[4::4]) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10]
    assert all(high / low == pytest.approx(10**0.25, rel=0.01) for low, high in pairwise(EDGES))


def test_counts_and_percentiles():
    values = [10 ** random.uniform(-8, 2) for _ in range(random.randrange(1, 400))]
    spread = Spread.of(values)
    assert sum(spread.counts) == len(values)
    bounds = [-math.inf, *EDGES, math.inf]
    for count, low, high in zip(spread.counts, bounds, bounds[1:], strict=False):
        assert count == sum(low <= value < high for value in values)
    for found, share in ((spread.p50, 0.5), (spread.p99, 0.99)):
        assert sum(value <= found for value in values) >= share * len(values)
        assert sum(value < found for value in values) < share * len(values)


def test_edge_cases():
    assert Spread.of([EDGES[3]]).counts[4] == 1  # an edge belongs to the bin that begins there
    spread = Spread.of([-1e-12, math.nan, math.inf])
    assert (spread.counts[0], spread.counts[-1]) == (1, 2)
    assert spread.p50 == spread.p99 == math.inf
    assert sum(Spread().counts) == 0
