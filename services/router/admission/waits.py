"""How long a request will wait, from how fast requests end while others wait. Pure: time is an argument."""

from __future__ import annotations

import math

_HORIZON = 10.0  # seconds of backlog over which the rate is taken
_PRIOR_SECONDS = 1.0  # of backlog that the guess before counts as
_LONGEST_GAP = 5.0  # between two ends that still tells of the rate


class Throughput:
    """Requests that end a second while there is a backlog: without one, ends tell how fast requests come.

    Before and in the first second of a backlog, places of the workers over the time that a request holds one stand in.
    """

    def __init__(self) -> None:
        self._ended = 0.0
        self._seconds = 0.0
        self._since: float | None = None  # backlogged since, or since the last end

    def backlog(self, now: float, waiting: bool) -> None:
        """Is told whenever requests begin or cease to wait."""
        if waiting and self._since is None:
            self._since = now
        elif not waiting:
            self._since = None

    def ended(self, now: float) -> None:
        """Counts the end of a request."""
        if self._since is None:
            return
        gap = min(now - self._since, _LONGEST_GAP)
        keep = math.exp(-gap / _HORIZON)
        self._ended = self._ended * keep + 1.0
        self._seconds = self._seconds * keep + gap
        self._since = now

    def rate(self, prior: float | None) -> float | None:
        """Returns requests a second; None when nothing is known.

        Args:
            prior: the guess from places and service times; None: there is none.
        """
        if prior is None:
            return self._ended / self._seconds if self._seconds >= _PRIOR_SECONDS else None
        return (self._ended + prior * _PRIOR_SECONDS) / (self._seconds + _PRIOR_SECONDS)
