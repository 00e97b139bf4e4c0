"""Statistics whose critical values leave one run in about a million to fail by chance."""

import math
import random
from array import array
from collections.abc import Callable, Sequence

import pytest

from deltaserve.bench.records import CANCELLED, OK, Record

_CHANCE = 1e-6


def assert_distributed(values: Sequence[float], cdf: Callable[[float], float]) -> None:
    """Kolmogorov-Smirnov: the values are a sample of a continuous distribution."""
    ordered, n = sorted(values), len(values)
    distance = max(max((i + 1) / n - cdf(v), cdf(v) - i / n) for i, v in enumerate(ordered))
    assert distance < math.sqrt(-0.5 * math.log(_CHANCE / 2) / n), (distance, n)


def assert_frequencies(counts: Sequence[int], weights: Sequence[float]) -> None:
    """Chi-squared: counts came from weights (those expected fewer than five times are taken together)."""
    total, n = sum(weights), sum(counts)
    pairs = [(count, n * weight / total) for count, weight in zip(counts, weights, strict=True)]
    rare = [pair for pair in pairs if pair[1] < 5]
    cells = [pair for pair in pairs if pair[1] >= 5]
    if rare:
        cells.append((sum(c for c, _ in rare), sum(e for _, e in rare)))
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    freedom = len(cells) - 1
    assert freedom > 0
    limit = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson and Hilferty
    assert statistic < limit, (statistic, freedom)


def make_record(status: str = OK, model: str = "a") -> Record:
    """Returns a request with random times and tokens that fit together."""
    due = random.uniform(0, 50)
    record = Record(model, due, sent=due + random.expovariate(100), status=status, prompt_tokens=random.randint(1, 99))
    times = [record.sent + random.random()]
    for _ in range(random.randint(0, 30)):
        times.append(times[-1] + random.expovariate(20))
    if status not in {OK, CANCELLED} and random.random() < 0.5:
        times = []
    record.frames = array("d", times).tobytes()
    record.output_tokens = len(times)
    record.ended = (times[-1] if times else record.sent) + random.random() / 10
    record.tier = random.choice(["device", "disk", ""])
    record.load = random.random() if record.tier == "disk" else 0.0
    return record


@pytest.fixture
def records() -> list[Record]:
    kinds = [OK] * 8 + [CANCELLED, "UNAVAILABLE", "HTTP 503"]
    made = [make_record(random.choice(kinds), f"m{min(int(random.expovariate(0.5)), 9)}") for _ in range(400)]
    return [*made, *(make_record(kind, "m0") for kind in set(kinds))]
