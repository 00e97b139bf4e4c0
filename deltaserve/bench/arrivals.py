"""When requests come: times in seconds from the start, seeded by the caller's generator."""

from __future__ import annotations

import itertools
import random

from deltaserve.errors import InvalidArgumentError


def renewal(rng: random.Random, rate: float, cv: float, seconds: float, most: int | None = None) -> list[float]:
    """Returns arrivals whose gaps are independent and gamma-distributed.

    Args:
        rng: where chance comes from.
        rate: requests a second in the long run, above 0.
        cv: coefficient of variation of the gaps, above 0: 1 is a Poisson process, more comes in bursts, less is more
            even than chance.
        seconds: times are below it.
        most: stop after so many.

    Raises:
        InvalidArgumentError: rate or cv is not above 0.
    """
    if not (rate > 0 and cv > 0):
        raise InvalidArgumentError(f"rate {rate:g} and cv {cv:g} must be above 0", field="rate")
    shape = 1 / cv**2
    scale = cv**2 / rate  # so that the mean gap is 1 / rate
    times: list[float] = []
    now = 0.0
    for _ in itertools.count() if most is None else range(most):
        now += rng.gammavariate(shape, scale)
        if now >= seconds:
            break
        times.append(now)
    return times
