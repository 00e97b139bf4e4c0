import math
import random
import statistics
from itertools import pairwise

import numpy as np
import pytest

from deltaserve.bench.arrivals import renewal
from deltaserve.errors import InvalidArgumentError
from tests.deltaserve.bench.conftest import assert_distributed


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise([0.0, *times])]


def test_gaps_of_cv_1_are_exponential() -> None:
    rate = random.uniform(0.1, 100)
    found = gaps(renewal(random.Random(), rate, 1.0, math.inf, 20_000))
    assert_distributed(found, lambda gap: 1 - math.exp(-rate * gap))


def test_counts_of_cv_1_are_poisson() -> None:
    rate, windows = random.uniform(2, 20), 4000
    counts = [0] * windows
    for time in renewal(random.Random(), rate, 1.0, windows):
        counts[int(time)] += 1
    # mean and variance of a Poisson count are equal; five standard errors of each
    assert statistics.fmean(counts) == pytest.approx(rate, abs=5 * math.sqrt(rate / windows))
    error = math.sqrt((rate + 2 * rate**2) / windows)
    assert statistics.variance(counts) == pytest.approx(rate, abs=5 * error)


@pytest.mark.parametrize("cv", [0.5, 2.0, 4.0])
def test_gaps_are_gamma_with_the_rate_and_cv_asked_for(cv: float) -> None:
    rate, n = random.uniform(0.5, 50), 20_000
    found = gaps(renewal(random.Random(), rate, cv, math.inf, n))
    reference = np.random.default_rng().gamma(1 / cv**2, cv**2 / rate, 40 * n)
    least = 1e-6 / rate  # shorter ones are lost in the digits of times, and bursts have many
    seen = np.sort(reference[reference > least])
    longer = [gap for gap in found if gap > least]
    assert_distributed(longer, lambda gap: float(np.searchsorted(seen, gap)) / len(seen))
    share = len(seen) / len(reference)
    assert len(longer) == pytest.approx(share * n, abs=5 * math.sqrt(n * share * (1 - share)) + 5)
    assert statistics.fmean(found) == pytest.approx(1 / rate, abs=5 * cv / rate / math.sqrt(n))


def test_the_end_and_the_most_are_kept() -> None:
    times = renewal(random.Random(), 50.0, 3.0, 20.0)
    assert times == sorted(times)
    assert times[-1] < 20.0
    assert len(renewal(random.Random(), 50.0, 1.0, 1e9, 17)) == 17


@pytest.mark.parametrize(("rate", "cv"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (math.nan, 1.0)])
def test_no_rate_is_refused(rate: float, cv: float) -> None:
    with pytest.raises(InvalidArgumentError, match="above 0"):
        renewal(random.Random(), rate, cv, 10.0)
