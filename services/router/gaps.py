"""When something happens next: three experts on the gap between two events, weighted by how well they did. Pure.

- **steady**: events come at random at the mean rate of the last gaps (exponential, with the rate's own uncertainty).
- **pattern**: gaps are as they were: a histogram of the last ones in bins that grow by a quarter, after the hybrid
  histogram policy of "Serverless in the Wild" (Shahrad et al., ATC'20), begun from what other models' first gaps were.
- **timer**: runs begin at equal distances. A run is what comes within ten seconds of each other; inside one this expert
  sleeps: its weight does not change (specialists, Freund et al. 1997).

An expert's weight is multiplied by the density that it gave to each gap that came (Bayes), and a little is shared out
so that a change is found. The probability of an event within h seconds, `age` seconds after the last, is
(S(age) - S(age + h)) / S(age) for the weighted survival function S: what did not come until now counts as well.
"""

from __future__ import annotations

import math
from array import array
from itertools import accumulate

RUN_SECONDS = 10.0
_BINS, _FIRST_SECONDS, _GROWTH = 56, 0.5, 1.25  # the last bin ends after 29 hours
_EDGES = [0.0, *(_FIRST_SECONDS * _GROWTH**i for i in range(_BINS))]
_LOG_GROWTH = math.log(_GROWTH)
_MOST_GAPS = 64.0  # the histogram's counts are halved when they reach it
_PRIOR_GAPS = 1.0  # what other models' gaps count for
_TAIL_GAPS, _TAIL_SECONDS = 8.0, 60.0  # weight and median of the tail of others' gaps
_RECENT_GAPS = 16.0  # of the steady expert
_RECENT_RUNS = 8.0  # of the timer
_LEAST_RUNS = 3.0
_LEAST_SPREAD = 0.01  # of a timer, as a share of its period
_NEAR, _FAR = 0.5, 2.0  # of a horizon
_SHARED = 0.02  # weight shared out after each gap
_TINY = 1e-12
_ROOT_TWO = math.sqrt(2.0)


class Histogram:
    """Counts of gaps in growing bins; old ones fade."""

    __slots__ = ("counts", "sums")

    def __init__(self, counts: array[float] | None = None) -> None:
        self.counts = counts or array("d", bytes(8 * _BINS))
        self.sums = array("d", accumulate(self.counts, initial=0.0))

    @property
    def total(self) -> float:
        """Gaps counted, as far as they have not faded."""
        return self.sums[_BINS]

    def add(self, gap: float) -> None:
        """Counts a gap of so many seconds."""
        if self.total >= _MOST_GAPS:
            self.counts = array("d", [c / 2 for c in self.counts])
        self.counts[_bin(gap)] += 1.0
        self.sums = array("d", accumulate(self.counts, initial=0.0))

    def above(self, place: int, share: float) -> float:
        """Returns how many gaps are longer than `share` of bin `place`, spread evenly within each bin."""
        return self.sums[_BINS] - self.sums[place] - self.counts[place] * share


def _bin(seconds: float) -> int:
    if seconds < _FIRST_SECONDS:
        return 0
    return min(_BINS - 1, 1 + int(math.log(seconds / _FIRST_SECONDS) / _LOG_GROWTH))


class Gaps:
    """What is known of the gaps between the events of one model.

    Attributes:
        last: time of the last event, seconds.
        events: how many there were.
        weights: of the experts steady, pattern and timer; they sum to one.
    """

    __slots__ = ("_already", "_begin", "_centre", "_mean", "_pattern", "_prior", "_runs", "_scale", "_steady",
                 "_variance", "events", "last", "weights")  # fmt: skip

    def __init__(self, first: float, prior: Histogram) -> None:
        """Begins with the first event; `prior` holds the first gaps of all models, and is added to."""
        self.last = self._begin = first
        self.events = 1
        self.weights = (1 / 3, 1 / 3, 1 / 3)
        self._prior = prior
        self._pattern = Histogram()
        self._steady = 0.0  # gaps that _mean is of
        self._mean = 0.0
        self._runs = 0.0  # distances between runs that _centre and _variance are of
        self._centre = 0.0  # of the logarithm of a distance
        self._variance = 0.0
        self._scale = 1.0  # of the logarithm of a distance, for erfc
        self._already = 1.0  # of the timer's survival function at the last event

    def add(self, now: float) -> None:
        """Takes the next event; one that is out of order counts as simultaneous with the last."""
        now = max(now, self.last)
        gap = now - self.last
        if self.events > 1:
            self._weigh(now, gap)
        if self.events <= 4:
            self._prior.add(gap)
        self._pattern.add(gap)
        self._steady = min(self._steady + 1.0, _RECENT_GAPS)
        self._mean += (gap - self._mean) / self._steady
        if gap >= RUN_SECONDS:
            self._take_run(now - self._begin)
            self._begin = now
        self.last = now
        self.events += 1
        self._already = self._timer_above(now - self._begin)

    def probability(self, now: float, seconds: float) -> float:
        """Returns how probable an event is from `now` until `seconds` later."""
        age = max(0.0, now - self.last)
        return _fallen(self._weighted(age), self._weighted(age + seconds))

    def soon(self, now: float, seconds: float) -> float:
        """Returns how probable an event is within half of `seconds` or twice as long, as likely one as the other.

        With one sharp horizon all that is due within it is alike: what is due now would wait for what is due later.
        """
        age = max(0.0, now - self.last)
        alive = self._weighted(age)
        near, far = self._weighted(age + seconds * _NEAR), self._weighted(age + seconds * _FAR)
        return 0.5 * (_fallen(alive, near) + _fallen(alive, far))

    def _weighted(self, age: float) -> float:
        """Returns the weighted survival function; placement's cost is mostly this."""
        place = _bin(age)
        begin, end = _EDGES[place], _EDGES[place + 1]
        share = (age - begin) / (end - begin) if age < end else 1.0
        others, own = self._prior, self._pattern
        # first gaps longer than we have watched are not among those of others: hence a tail without any scale
        prior = others.above(place, share) + _TAIL_GAPS / math.sqrt(1.0 + age / _TAIL_SECONDS)
        prior *= _PRIOR_GAPS / (others.sums[_BINS] + _TAIL_GAPS)
        pattern = (own.above(place, share) + prior) / (own.sums[_BINS] + _PRIOR_GAPS)
        if not self._steady:
            return pattern
        a, b, c = self.weights
        total = self._steady * self._mean + _TINY
        steady = a * math.pow(total / (total + age), self._steady)
        if self._runs < _LEAST_RUNS or self._already <= _TINY:
            return steady + (b + c) * pattern
        return steady + b * pattern + c * self._timer_above(self.last - self._begin + age) / self._already

    def _timer_above(self, seconds: float) -> float:
        if seconds <= 0.0:
            return 1.0
        return 0.5 * math.erfc((math.log(seconds) - self._centre) / self._scale)

    def _spread(self) -> float:
        # few runs tell little about how regular they are
        return (math.sqrt(self._variance) + _LEAST_SPREAD) * (1.0 + 2.0 / self._runs)

    def _weigh(self, now: float, gap: float) -> None:
        total = self._steady * self._mean + _TINY
        steady = self._steady / (total + gap) * (total / (total + gap)) ** self._steady
        place = _bin(gap)
        begin, end = _EDGES[place], _EDGES[place + 1]
        tail = _TAIL_GAPS * 0.5 / _TAIL_SECONDS * (1.0 + gap / _TAIL_SECONDS) ** -1.5
        prior = (self._prior.counts[place] / (end - begin) + tail) / (self._prior.total + _TAIL_GAPS)
        pattern = self._pattern.counts[place] / (end - begin) + _PRIOR_GAPS * prior
        pattern /= self._pattern.total + _PRIOR_GAPS
        a, b, c = self.weights
        asleep = (a * steady + b * pattern) / (a + b)
        timer = asleep if gap < RUN_SECONDS or self._runs < _LEAST_RUNS else self._timer_density(now - self._begin)
        a, b, c = a * steady + _TINY, b * pattern + _TINY, c * timer + _TINY
        kept = (1.0 - _SHARED) / (a + b + c)
        self.weights = (a * kept + _SHARED / 3, b * kept + _SHARED / 3, c * kept + _SHARED / 3)

    def _timer_density(self, seconds: float) -> float:
        spread = self._spread()
        z = (math.log(seconds) - self._centre) / spread
        density = math.exp(-0.5 * z * z) / (seconds * spread * math.sqrt(2.0 * math.pi))
        return density / self._already if self._already > _TINY else 0.0

    def _take_run(self, distance: float) -> None:
        self._runs = min(self._runs + 1.0, _RECENT_RUNS)
        step = math.log(distance) - self._centre
        self._centre += step / self._runs
        self._variance += ((1.0 - 1.0 / self._runs) * step * step - self._variance) / self._runs
        self._scale = self._spread() * _ROOT_TWO


def _fallen(alive: float, later: float) -> float:
    return min(1.0, max(0.0, 1.0 - later / alive)) if alive > _TINY else 0.0
