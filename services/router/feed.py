"""Arrivals as workers tell them, put in one order that is the same at every router. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Iterable

SETTLE_SECONDS = 1.0  # by then an arrival has reached every router; until then it does not count


class Feed:
    """Arrivals that wait until they are settled."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}  # time of the last arrival that each worker told, milliseconds
        self._waiting: list[tuple[int, str]] = []

    def take(self, worker: str, arrivals: Iterable[tuple[int, str]]) -> None:
        """Takes (milliseconds, revision) of a worker; those that it told before, in a former session, are left out."""
        told = self._told.get(worker, -1)
        new = [arrival for arrival in arrivals if arrival[0] > told]
        self._waiting += new
        self._told[worker] = max((time for time, _ in new), default=told)

    def settled(self, now: float) -> list[tuple[float, str]]:
        """Removes and returns (seconds, revision) of what came up to SETTLE_SECONDS before `now`, in order."""
        limit = int((now - SETTLE_SECONDS) * 1000)
        due = sorted(arrival for arrival in self._waiting if arrival[0] <= limit)
        self._waiting = [arrival for arrival in self._waiting if arrival[0] > limit]
        return [(time / 1000, revision) for time, revision in due]
