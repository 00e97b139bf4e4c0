import math
import random
from collections import Counter

import pytest

from deltaserve.bench.lengths import parse_lengths
from deltaserve.errors import InvalidArgumentError
from tests.deltaserve.bench.conftest import assert_distributed, assert_frequencies

N = 20_000


def draw(text: str) -> list[int]:
    lengths, rng = parse_lengths(text, "f"), random.Random()
    return [lengths.draw(rng) for _ in range(N)]


def test_fixed() -> None:
    assert set(draw("128")) == set(draw("fixed:128")) == {128}


def test_uniform_includes_both_ends() -> None:
    counts = Counter(draw("uniform:10,29"))
    assert_frequencies([counts[n] for n in range(10, 30)], [1.0] * 20)
    assert sum(counts.values()) == sum(counts[n] for n in range(10, 30))


def test_geometric() -> None:
    mean = random.uniform(2, 30)
    counts = Counter(draw(f"geometric:{mean}"))
    p, last = 1 / mean, max(counts)
    weights = [p * (1 - p) ** (n - 1) for n in range(1, last + 1)]
    assert_frequencies([*(counts[n] for n in range(1, last + 1)), 0], [*weights, 1 - sum(weights)])
    assert set(draw("geometric:1")) == {1}


def test_lognormal_has_its_median_and_spread() -> None:
    median, sigma = random.uniform(5_000, 10_000), random.uniform(0.2, 0.5)  # so long that rounding does not show
    found = draw(f"lognormal:{median},{sigma}")
    jittered = [n + random.uniform(-0.5, 0.5) for n in found]
    assert_distributed(jittered, lambda n: 0.5 * (1 + math.erf(math.log(n / median) / sigma / math.sqrt(2))))


@pytest.mark.parametrize("text", ["geometric:50,60", "lognormal:50,2,60"])
def test_long_draws_are_cut(text: str) -> None:
    found = draw(text)
    assert min(found) >= 1
    assert max(found) == 60


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-3", "nan", "uniform:5", "uniform:9,3", "uniform:0,3", "pareto:3", "geometric:0.5",
             "lognormal:50", "lognormal:50,-1", "lognormal:50,1,2,3", "1e9", "fixed:1,2", "lognormal:50,inf"],
)  # fmt: skip
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="some-field") as refused:
        parse_lengths(text, "some-field")
    assert refused.value.field == "some-field"
