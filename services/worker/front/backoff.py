"""Deltas that fail again and again are left alone for growing times. Pure: time is an argument.

A broken delta would otherwise be fetched and loaded for every request that asks for it, over the same disk, network
and loader that sound ones need.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltaserve.errors import DeltaServeError

FREE_FAILURES = 2  # in a row; the second try finds a fresh copy where the first found a rotten one on the disk
_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 60.0


@dataclass(slots=True)
class _Failures:
    error: DeltaServeError
    count: int
    until: float


class Backoff:
    """What failed lately, by revision."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failures] = {}

    def failed(self, revision: str, error: DeltaServeError, now: float) -> float:
        """Notes a failure; returns the seconds for which the revision is left alone."""
        former = self._failures.get(revision)
        count = former.count + 1 if former else 1
        beyond = count - FREE_FAILURES - 1
        seconds = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(beyond, 30)) if beyond >= 0 else 0.0
        self._failures[revision] = _Failures(error, count, now + seconds)
        return seconds

    def succeeded(self, revision: str) -> None:
        """Forgets what was wrong."""
        self._failures.pop(revision, None)

    def check(self, revision: str, now: float) -> None:
        """Raises what the revision failed with last, while it is left alone."""
        found = self._failures.get(revision)
        if found is not None and now < found.until:
            raise found.error.with_traceback(None)
