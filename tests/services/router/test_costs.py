"""Load costs: assumed, then measured."""

from __future__ import annotations

import random

import pytest

from services.router.costs import LoadCosts, LoadSample, Tier

GB = 1 << 30


def test_measured_loads_replace_what_was_assumed() -> None:
    assumed, factor = LoadCosts(), random.uniform(0.2, 5.0)
    sizes = [random.randrange(1, 4 * GB) for _ in range(9)]
    samples = [LoadSample(Tier.DISK, size, factor * assumed.expected(Tier.DISK, size)) for size in sizes]
    outliers = [LoadSample(Tier.DISK, GB, 100.0), LoadSample(Tier.DISK, GB, 0.0)]
    costs = assumed.measured(samples + outliers)
    assert costs.expected(Tier.DISK, 3 * GB) == pytest.approx(factor * assumed.expected(Tier.DISK, 3 * GB))
    assert costs.expected(Tier.STORE, GB) == assumed.expected(Tier.STORE, GB)
    assert costs.expected(Tier.DEVICE, GB) == 0.0
    assert costs.measured(samples) == assumed.measured(samples)  # not of the factor again


def test_samples_of_no_known_source_are_ignored() -> None:
    assert LoadCosts().measured([LoadSample(Tier.NONE, GB, 1.0), LoadSample(Tier.DEVICE, GB, 1.0)]) == LoadCosts()
