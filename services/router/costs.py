"""What bringing a delta to memory costs: assumed at first, then as workers measured it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum


class Tier(IntEnum):
    """Where a delta is, as in inference.proto."""

    NONE = 0
    STORE = 1
    DISK = 2
    HOST = 3
    DEVICE = 4
    DECODED = 5


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One load that a worker measured: from which tier, of how many bytes, and seconds until it was usable."""

    source: Tier
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadCosts:
    """What bringing a delta into a worker's memory is taken to cost, by the tier it comes from.

    Attributes:
        seconds: fixed part.
        bytes_per_second: the rest.
        factor: by which measured loads differ from these two; a tier without measurements has none.
    """

    seconds: Mapping[Tier, float] = field(default_factory=lambda: {Tier.STORE: 0.1, Tier.DISK: 0.02, Tier.HOST: 0.005})
    bytes_per_second: Mapping[Tier, float] = field(
        default_factory=lambda: {Tier.STORE: 200e6, Tier.DISK: 1e9, Tier.HOST: 20e9}
    )
    factor: Mapping[Tier, float] = field(default_factory=dict)

    def expected(self, tier: Tier, size: int) -> float:
        """Seconds until a delta of `size` bytes is usable when it is in `tier` now."""
        if tier >= Tier.DEVICE:
            return 0.0
        source = max(tier, Tier.STORE)
        assumed = self.seconds[source] + size / self.bytes_per_second[source]
        return assumed * self.factor.get(source, 1.0)

    def measured(self, samples: Iterable[LoadSample]) -> LoadCosts:
        """Returns the costs that follow the samples: the median of measured over assumed seconds, tier by tier.

        A median, since a load that waited behind another, or found the page cache warm, says little about the next.
        """
        assumed, ratios = replace(self, factor={}), dict[Tier, list[float]]()
        for sample in samples:
            if sample.source in self.seconds:
                ratio = sample.seconds / assumed.expected(sample.source, sample.bytes)
                ratios.setdefault(sample.source, []).append(ratio)
        return replace(self, factor={tier: statistics.median(found) for tier, found in ratios.items()})
