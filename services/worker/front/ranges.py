"""Ranges of the sampling parameters, as inference.proto states them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval, or one open below; never NaN or infinite."""

    low: float
    high: float
    open_below: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is within."""
        above = value > self.low if self.open_below else value >= self.low  # of integers of any size, so compared first
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        return f"{'(' if self.open_below else '['}{self.low:g}, {self.high:g}]"


RANGES = {
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, open_below=True),
    "top_k": Range(0, 2**32 - 1),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, 100, open_below=True),
}
LOGIT_BIAS = Range(-100, 100)
CHOICES = Range(1, 16)
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
DEFAULT_MAX_TOKENS = 1024
