"""When requests came: what a worker remembers for the routers, which forget everything when they restart."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from deltaserve.v1.worker_pb2 import Arrivals, ArrivalTimes

MOST = 20_000


class ArrivalHistory:
    """The last arrivals, and those of them that were not sent yet."""

    def __init__(self, most: int = MOST) -> None:
        self._all: deque[tuple[str, int]] = deque(maxlen=most)
        self._new: list[tuple[str, int]] = []
        self._last = 0

    def add(self, revision: str, unix_ms: int) -> None:
        """Notes a request; a clock that was set back does not make it earlier than the one before."""
        self._last = max(self._last, unix_ms)
        self._all.append((revision, self._last))
        self._new.append((revision, self._last))

    def whole(self) -> Arrivals:
        """Returns all that is remembered."""
        return _message(self._all)

    def news(self) -> Arrivals | None:
        """Returns what came since the last call, None for nothing."""
        new, self._new = self._new, []
        return _message(new) if new else None


def _message(arrivals: Iterable[tuple[str, int]]) -> Arrivals:
    times: dict[str, list[int]] = {}
    for revision, unix_ms in arrivals:
        times.setdefault(revision, []).append(unix_ms)
    return Arrivals(revisions=[ArrivalTimes(revision=r, unix_ms=ms) for r, ms in times.items()])
