"""How often each of M models is asked for: weights that need not add up to one."""

from __future__ import annotations

import random

_AZURE_SHAPE, _AZURE_CAP = 0.6, 200.0


def uniform(models: int) -> list[float]:
    """Returns the same weight for all."""
    return [1.0] * models


def zipf(models: int, exponent: float) -> list[float]:
    """Returns true Zipf weights: the k-th model's is k ** -exponent, without a cut or a shuffle."""
    return [rank**-exponent for rank in range(1, models + 1)]


def azure(models: int, rng: random.Random) -> list[float]:
    """Returns weights with the heavy tail of Azure Functions: Pareto of shape 0.6, cut at 200 times the least.

    A few models get nearly all requests, and most are asked for rarely. They are in no order.
    """
    return [min(rng.paretovariate(_AZURE_SHAPE), _AZURE_CAP) for _ in range(models)]
