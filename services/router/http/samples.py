"""What a live page draws as lines: the last minutes of a few numbers, at equal distances. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

SAMPLES = 90  # kept of each line
SAMPLE_SECONDS = 2.0
MOST_LINES = 500  # models; of more, the busiest


class Samples:
    """Lines by name; one that is not sampled for as long as lines are is forgotten."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Takes the next value of every line; a line without one gets 0, a new one had 0 before."""
        largest = sorted(values, key=lambda name: -values[name])[:MOST_LINES]
        for name in self._lines.keys() | set(largest):
            line = self._lines.setdefault(name, deque(maxlen=SAMPLES))
            line.append(values.get(name, 0.0))
        self._lines = {name: line for name, line in self._lines.items() if any(line)}

    def line(self, name: str) -> list[float]:
        """Returns a line, oldest first, at most SAMPLES long; empty for one that was 0 all the time."""
        return [round(value, 4) for value in self._lines.get(name, ())]
