"""Request traces: the published ones, and longer generated ones of the same kinds. Seeded; times in seconds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltaserve.bench import popularity
from deltaserve.bench.traces import read_trace

DAY = 86400.0


@dataclass(frozen=True)
class Trace:
    """Requests of models numbered from 0, by time.

    Attributes:
        name: for tables.
        models: how many there are; not all need to be asked for.
        events: (seconds, model).
    """

    name: str
    models: int
    events: list[tuple[float, int]]

    @property
    def seconds(self) -> float:
        """Time of the last request."""
        return self.events[-1][0]


def published(path: Path) -> Trace:
    """Returns one of ../shared/traces. Raises FormatError."""
    requests = read_trace(path)
    number = {name: place for place, name in enumerate(sorted({one.model for one in requests}))}
    return Trace(path.stem, len(number), [(one.at, number[one.model]) for one in requests])


def drawn(name: str, weights: list[float], rate: float, seconds: float, seed: int) -> Trace:
    """Returns Poisson arrivals of `rate` requests a second in all, models drawn by weight."""
    rng = random.Random(seed)
    times, now = [], rng.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += rng.expovariate(rate)
    chosen = rng.choices(range(len(weights)), weights, k=len(times))
    return Trace(name, len(weights), list(zip(times, chosen, strict=True)))


def zipf(models: int, rate: float, seconds: float, seed: int, exponent: float = 1.5) -> Trace:
    """Returns Poisson arrivals with true Zipf popularity."""
    return drawn(f"zipf {exponent}", popularity.zipf(models, exponent), rate, seconds, seed)


def uniform(models: int, rate: float, seconds: float, seed: int) -> Trace:
    """Returns Poisson arrivals, all models alike."""
    return drawn("uniform", popularity.uniform(models), rate, seconds, seed)


def mixed(models: int, rate: float, seconds: float, seed: int) -> Trace:
    """Returns what Azure Functions look like: popularity with a heavy tail.

    A third of the models are called by timers (some with several requests at a tick), a third in bursts, a third at
    random, half of these by day only.
    """
    rng = random.Random(seed)
    events: list[tuple[float, int]] = []
    weights = popularity.azure(models, rng)
    share = rate / sum(weights)
    for model, weight in enumerate(weights):
        mean = weight * share  # requests a second
        kind: Callable[..., Iterator[float]] = (_timer, _bursts, _random)[model % 3]
        events += [(time, model) for time in kind(rng, mean, seconds)]
    return Trace("azure-like", models, sorted(events))


def timers(models: int, rate: float, seconds: float, seed: int) -> Trace:
    """Returns models that are all called by timers."""
    rng = random.Random(seed)
    events = [(t, m) for m in range(models) for t in _timer(rng, rate / models, seconds)]
    return Trace("timers", models, sorted(events))


def bursts(models: int, rate: float, seconds: float, seed: int) -> Trace:
    """Returns models that are all asked for in bursts, which themselves come at random."""
    rng = random.Random(seed)
    events = [(t, m) for m in range(models) for t in _bursts(rng, rate / models * rng.lognormvariate(0, 1), seconds)]
    return Trace("bursts", models, sorted(events))


def daily(models: int, rate: float, seconds: float, seed: int) -> Trace:
    """Returns models that people use by day, each with office hours of its own."""
    rng = random.Random(seed)
    events: list[tuple[float, int]] = []
    for model in range(models):
        events += [(t, model) for t in _daytime(rng, rate / models * rng.lognormvariate(0, 1), seconds)]
    return Trace("daily", models, sorted(events))


def _timer(rng: random.Random, mean: float, seconds: float) -> Iterator[float]:
    period = min((60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0), key=lambda p: abs(math.log(p * mean)))
    size = max(1, round(period * mean))  # requests at a tick
    now = rng.uniform(0, period)
    while now < seconds:
        for _ in range(size):
            at = now + abs(rng.gauss(0, 1.0))
            if at < seconds:
                yield at
        now += period


def _bursts(rng: random.Random, mean: float, seconds: float) -> Iterator[float]:
    size = rng.uniform(3, 20)
    now = rng.expovariate(mean / size)
    while now < seconds:
        at = now
        for _ in range(1 + int(rng.expovariate(1 / size))):
            if at < seconds:
                yield at
            at += rng.expovariate(0.5)
        now = at + rng.expovariate(mean / size)


def _random(rng: random.Random, mean: float, seconds: float) -> Iterator[float]:
    if rng.random() < 0.5:
        yield from _daytime(rng, mean, seconds)
        return
    now = rng.expovariate(mean)
    while now < seconds:
        yield now
        now += rng.expovariate(mean)


def _daytime(rng: random.Random, mean: float, seconds: float) -> Iterator[float]:
    shift, peak = rng.uniform(0, DAY), 3.0
    now = rng.expovariate(mean * peak)
    while now < seconds:
        if rng.random() < max(0.0, math.sin((now + shift) / DAY * 2 * math.pi)):
            yield now
        now += rng.expovariate(mean * peak)
