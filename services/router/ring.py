"""Which workers a revision belongs to when nothing else decides. Pure."""

from __future__ import annotations

import zlib
from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache

_POINTS = 16  # of each worker on the ring


class Ring:
    """Workers on a ring, each at several points, so that one more or less moves few revisions (consistent hashing)."""

    def __init__(self, workers: Sequence[str]) -> None:
        points = sorted((_hash(f"{name}\0{i}"), name) for name in workers for i in range(_POINTS))
        self._hashes = [point[0] for point in points]
        self._workers = [point[1] for point in points]
        self._count = len(workers)
        self._known: dict[tuple[int, int], tuple[str, ...]] = {}

    def after(self, revision: str, most: int) -> tuple[str, ...]:
        """Returns at most `most` workers, in the order in which they follow the revision's hash."""
        begin, most = bisect(self._hashes, _hash(revision)), min(most, self._count)
        found = self._known.get((begin, most))
        if found is None:
            found = self._known[begin, most] = self._walk(begin, most)
        return found

    def _walk(self, begin: int, most: int) -> tuple[str, ...]:
        seen: dict[str, None] = {}
        for name in (*self._workers[begin:], *self._workers[:begin]):
            seen[name] = None
            if len(seen) == most:
                break
        return tuple(seen)


@lru_cache(maxsize=8)
def ring_of(workers: tuple[str, ...]) -> Ring:
    """Returns the ring of these workers, made once."""
    return Ring(workers)


def _hash(text: str) -> int:
    # crc32 of near-equal names is not spread well: multiplied by an odd constant it is (Knuth)
    return zlib.crc32(text.encode()) * 2654435761 & 0xFFFFFFFF
