"""What will be asked for: rates, bursts and the probability of a request soon, model by model. Pure.

Times are seconds of any one clock. The book is fed with arrivals in the order of their times and holds a bounded number
of models, those asked for last; a model takes about 2 KiB, an arrival some ten microseconds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from services.router.gaps import Gaps, Histogram
from services.router.rates import LONG_SECONDS, SHORT_SECONDS, ArrivalRate

_BURST_SIGMAS = 3.0
_BURST_ARRIVALS = 3.0
_MEDIAN_SECONDS = 86400.0  # a next arrival later than this is not told
_GRID = 8  # ages are rounded down to steps of 2**-8 of themselves, so that old ones are seldom computed anew
_FORGOTTEN = 20.0  # horizons after which a rate is nothing


class Forecast(NamedTuple):
    """What is expected of one model.

    Attributes:
        probability: of a request soon: see Forecasts.probability.
        rate: requests a second to provide for: the long rate, or the short one while there is a burst.
        short_rate: requests a second lately.
        long_rate: requests a second over a long time.
        bursting: whether the short rate is more than chance makes of the long one.
    """

    probability: float = 0.0
    rate: float = 0.0
    short_rate: float = 0.0
    long_rate: float = 0.0
    bursting: bool = False


@dataclass(slots=True)
class _Entry:
    gaps: Gaps
    short: ArrivalRate
    long: ArrivalRate
    asked: tuple[float, float] = (0.0, 0.0)  # time and seconds that `answer` is for
    answer: float = 0.0

    def soon(self, now: float, seconds: float) -> float:
        """See Forecasts; a function of the rounded age only, so that it does not matter who asked before."""
        age = now - self.gaps.last
        if age > 1.0:
            step = math.ldexp(1.0, math.frexp(age)[1] - 1 - _GRID)
            now = self.gaps.last + age // step * step
        if self.asked != (now, seconds):
            self.asked, self.answer = (now, seconds), self.gaps.soon(now, seconds)
        return self.answer

    def rates(self, now: float) -> tuple[float, float]:
        """Returns the short and the long rate."""
        age = now - self.gaps.last
        short = self.short.rate(now) if age < _FORGOTTEN * SHORT_SECONDS else 0.0
        return short, self.long.rate(now) if age < _FORGOTTEN * LONG_SECONDS else 0.0


class Forecasts:
    """Arrivals by name, and what they let expect."""

    def __init__(self, start: float, most: int = 20_000) -> None:
        """Observes from `start` on; keeps the `most` names asked for last."""
        self._start = start
        self._most = most
        self._prior = Histogram()
        self._entries: dict[str, _Entry] = {}  # the one asked for last is last

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> Iterable[str]:
        """Returns all known names, the one asked for last at the end."""
        return self._entries.keys()

    def arrived(self, name: str, now: float) -> None:
        """Counts a request."""
        entry = self._entries.pop(name, None)
        if entry is None:
            entry = _Entry(
                Gaps(now, self._prior), ArrivalRate(SHORT_SECONDS, self._start), ArrivalRate(LONG_SECONDS, self._start)
            )
            if len(self._entries) >= self._most:
                del self._entries[next(iter(self._entries))]
        else:
            entry.gaps.add(now)
            entry.asked = (0.0, 0.0)
        self._entries[name] = entry
        entry.short.add(now)
        entry.long.add(now)

    def inherit(self, name: str, former: str) -> None:
        """Expects of `name`, which nobody asked for yet, what `former` (its last revision) lets expect."""
        if name not in self._entries and former in self._entries:
            self._entries[name] = copy.deepcopy(self._entries[former], {id(self._prior): self._prior})

    def probability(self, name: str, now: float, seconds: float) -> float:
        """Returns how probable a request within about `seconds` is (see Gaps.soon); 0 for an unknown name."""
        entry = self._entries.get(name)
        return entry.soon(now, seconds) if entry else 0.0

    def forecast(self, name: str, now: float, seconds: float) -> Forecast:
        """Returns everything about one name, with the probability for the next `seconds`."""
        entry = self._entries.get(name)
        if entry is None:
            return Forecast()
        short, long = entry.rates(now)
        bursting = is_burst(short * SHORT_SECONDS, long * SHORT_SECONDS)
        return Forecast(entry.soon(now, seconds), short if bursting else long, short, long, bursting)

    def next_seconds(self, name: str, now: float) -> float | None:
        """Returns in how many seconds the next request is as likely to have come as not; None for beyond a day."""
        entry = self._entries.get(name)
        if entry is None or entry.gaps.probability(now, _MEDIAN_SECONDS) < 0.5:
            return None
        low, high = 0.0, _MEDIAN_SECONDS
        while high - low > 0.05 * high and high > 0.1:
            middle = (low + high) / 2 if low else high / 2
            if entry.gaps.probability(now, middle) < 0.5:
                low = middle
            else:
                high = middle
        return high


def is_burst(came: float, expected: float) -> bool:
    """Tells whether `came` arrivals are more than chance (Poisson, three sigmas) makes of `expected` ones."""
    return came >= _BURST_ARRIVALS and came - expected > _BURST_SIGMAS * math.sqrt(max(expected, 1.0))
