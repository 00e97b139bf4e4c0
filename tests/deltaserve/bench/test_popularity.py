import math
import random

import pytest

from deltaserve.bench import popularity
from tests.deltaserve.bench.conftest import assert_distributed


def test_uniform() -> None:
    assert popularity.uniform(5) == [1.0] * 5


def test_zipf_is_a_power_of_the_rank() -> None:
    exponent = random.uniform(0.5, 3)
    weights = popularity.zipf(100, exponent)
    for rank in random.sample(range(1, 50), 10):
        assert abs(weights[2 * rank - 1] / weights[rank - 1] - 2**-exponent) < 1e-12
    assert popularity.zipf(3, 0.0) == [1.0] * 3


def test_azure_is_pareto_up_to_its_cut() -> None:
    weights = popularity.azure(20_000, random.Random())
    assert max(weights) == 200.0
    below = 1 - 200.0**-0.6
    uncut = [w for w in weights if w < 200.0]
    assert_distributed(uncut, lambda w: (1 - w**-0.6) / below)
    assert len(uncut) == pytest.approx(below * 20_000, abs=5 * math.sqrt(20_000 * below * (1 - below)))
    weights.sort()
    assert sum(weights[-2000:]) > 0.5 * sum(weights)  # a tenth of the models gets more than half
