import random
import statistics
from fractions import Fraction

import pytest

from deltaserve.bench.percentiles import Distribution, curve, distribution, percentile


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 1234])
def test_a_percentile_is_the_least_value_that_covers_the_share(count: int) -> None:
    values = sorted(random.lognormvariate(0, 2) for _ in range(count))
    for percent in ("0.1", *map(str, range(1, 101)), "99.9", "99.99"):
        share = Fraction(percent) / 100
        expected = next(v for i, v in enumerate(values, 1) if Fraction(i, count) >= share)
        assert percentile(values, float(percent)) == expected, percent


def test_figures_of_values_in_any_order() -> None:
    values = [random.lognormvariate(0, 2) for _ in range(500)]
    found = distribution(iter(values))
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert (found.count, found.most) == (500, max(values))
    assert (found.p50, found.p90, found.p99) == tuple(percentile(sorted(values), p) for p in (50, 90, 99))
    assert curve(values)[::50] == [min(values), found.p50, found.most]


def test_nothing_has_no_figures() -> None:
    assert distribution([]) == Distribution(0, None, None, None, None, None)
    assert curve([]) == []
