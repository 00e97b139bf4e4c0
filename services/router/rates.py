"""Request rates of models: exponentially weighted over a short and a long horizon. Pure: time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHORT_SECONDS = 10.0
LONG_SECONDS = 600.0
_YOUNGEST_SECONDS = 1.0  # a rate is not told from less than this much history


class ArrivalRate:
    """Events a second, each event weighted by exp(-age / horizon).

    The estimate is Σ weights divided by the weight that a full history since `start` would have, so that it is unbiased
    from the first second on, not only after several horizons.
    """

    def __init__(self, horizon: float, start: float) -> None:
        self._horizon = horizon
        self._start = start
        self._sum = 0.0
        self._at = start

    def add(self, now: float) -> None:
        """Counts one event."""
        self._decay(now)
        self._sum += 1.0

    def rate(self, now: float) -> float:
        """Returns events a second."""
        self._decay(now)
        observed = max(now - self._start, _YOUNGEST_SECONDS)
        return self._sum / (self._horizon * -math.expm1(-observed / self._horizon))

    def _decay(self, now: float) -> None:
        if now > self._at:
            self._sum *= math.exp((self._at - now) / self._horizon)
            self._at = now


@dataclass(frozen=True, slots=True)
class Rates:
    """What is known about the arrivals of one model; rates in requests a second."""

    total: int = 0
    short_rate: float = 0.0
    long_rate: float = 0.0
    in_flight: int = 0


class RateBook:
    """Arrivals and requests in flight, model by model.

    Only models that exist are to be counted: the book holds one entry for each name it was ever given.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._entries: dict[str, _Entry] = {}

    def arrived(self, model: str, now: float) -> None:
        """Counts a request that begins now."""
        entry = self._entries.get(model)
        if entry is None:
            entry = self._entries[model] = _Entry(
                ArrivalRate(SHORT_SECONDS, self._start), ArrivalRate(LONG_SECONDS, self._start)
            )
        entry.total += 1
        entry.in_flight += 1
        entry.short.add(now)
        entry.long.add(now)

    def ended(self, model: str) -> None:
        """Counts the end of a request, however it ended."""
        self._entries[model].in_flight -= 1

    def names(self) -> list[str]:
        """Returns the models that were ever asked for."""
        return list(self._entries)

    def rates(self, model: str, now: float) -> Rates:
        """Returns a model's rates; all zero for one that was never asked for."""
        entry = self._entries.get(model)
        if entry is None:
            return Rates()
        return Rates(entry.total, entry.short.rate(now), entry.long.rate(now), entry.in_flight)

    def all_rates(self, now: float) -> dict[str, float]:
        """Returns every model's arrivals a second over the short horizon."""
        return {model: entry.short.rate(now) for model, entry in self._entries.items()}


@dataclass(slots=True)
class _Entry:
    short: ArrivalRate
    long: ArrivalRate
    total: int = 0
    in_flight: int = 0
