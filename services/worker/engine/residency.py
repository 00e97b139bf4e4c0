"""Which deltas are in memory (pure): two byte budgets, one for packed deltas and one for merged hot ones.

A delta goes through expected → wanted → loading → resident, and may then be decoded. Callers do the transfers and
report back; this module decides what is loaded, decoded and evicted. A claimed delta (one that sequences need) is never
evicted; of the others those worth least go first, as routers see it, and among equals those used least recently.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from deltaserve.errors import QuotaError

_RANK_SECONDS = 30.0  # what routers said longer ago counts no more


@dataclass(slots=True)
class Entry:
    """One delta. Bytes are zero while they are not taken."""

    revision: str
    pinned: bool
    size: int = 0  # packed
    decoded_size: int = 0  # of the merged weights
    state: str = "expected"  # expected (its size is not known yet), wanted, loading, resident
    decode: str = ""  # "", loading, resident
    dropping: bool = False
    last_used: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes that the delta takes now."""
        return (self.size if self.in_memory else 0) + (self.decoded_size if self.decode else 0)

    @property
    def in_memory(self) -> bool:
        """Whether the delta takes memory, complete or not."""
        return self.state in ("loading", "resident")


@dataclass(slots=True)
class Moves:
    """What to do now, in this order."""

    evict: list[str] = field(default_factory=list)
    forget_decoded: list[str] = field(default_factory=list)
    load: list[str] = field(default_factory=list)
    decode: list[str] = field(default_factory=list)


class Residency:
    """The deltas that are in memory, on their way, or waiting for room."""

    def __init__(self, budget: int, decoded_budget: int) -> None:
        self.budget = budget
        self.decoded_budget = decoded_budget
        self.entries: dict[str, Entry] = {}  # in order of arrival
        self._worths: Mapping[str, float] = {}
        self._ranked_at = 0.0

    def rank(self, worths: Mapping[str, float], now: float) -> None:
        """Takes what deltas are worth; one that is not named counts as worth most: it came since."""
        self._worths, self._ranked_at = worths, now

    def expect(self, revision: str, *, pinned: bool) -> Entry:
        """Notes that a delta shall come, or stay, and whether it is pinned; returns its entry."""
        entry = self.entries.setdefault(revision, Entry(revision, pinned))
        entry.pinned, entry.dropping = pinned, False
        return entry

    def want(self, revision: str, size: int, decoded_size: int) -> None:
        """Asks for the load of an expected delta; raises QuotaError when it can never fit."""
        entry = self.entries[revision]
        pinned_bytes = sum(e.size for e in self.entries.values() if e.pinned)
        if size > self.budget - pinned_bytes:
            raise QuotaError(
                f"delta {revision} takes {size} bytes; the budget is {self.budget}, of which {pinned_bytes} are pinned",
                subject="delta_bytes",
            )
        entry.size, entry.decoded_size, entry.state = size, decoded_size, "wanted"

    def resident(self) -> set[str]:
        """Returns the deltas that can run."""
        return {e.revision for e in self.entries.values() if e.state == "resident"}

    def blocked(self) -> set[str]:
        """Returns the deltas that wait for room."""
        return {e.revision for e in self.entries.values() if e.state == "wanted"}

    def used(self) -> int:
        """Returns the bytes that all deltas take, merged weights and loads under way included."""
        return sum(e.bytes for e in self.entries.values())

    def moves(self, claims: Collection[str], now: float, first: str = "") -> Moves:
        """Decides the next moves and takes them as done (evictions) or begun (loads, decodes).

        Args:
            claims: deltas that sequences need.
            now: seconds, of any clock.
            first: the delta that others gave way to: the room they left is its own.
        """
        for revision in claims:
            if revision in self.entries:
                self.entries[revision].last_used = now
        if now - self._ranked_at > _RANK_SECONDS:
            self._worths = {}
        moves = Moves()
        for entry in list(self.entries.values()):
            if entry.dropping and (entry.state == "wanted" or self._is_idle(entry, claims)):
                self._evict(entry, moves)
        self._begin_loads(moves, claims, first)
        self._begin_decode(moves, claims)
        return moves

    def loaded(self, revision: str) -> None:
        """Notes that a load is complete."""
        self.entries[revision].state = "resident"

    def decoded(self, revision: str) -> None:
        """Notes that merged weights are complete."""
        self.entries[revision].decode = "resident"

    def failed(self, revision: str) -> None:
        """Forgets a delta whose load failed; unknown ones are ignored."""
        self.entries.pop(revision, None)

    def _begin_loads(self, moves: Moves, claims: Collection[str], first: str) -> None:
        wanted = [e for e in self.entries.values() if e.state == "wanted"]
        for entry in sorted(wanted, key=lambda e: (e.revision != first, e.revision not in claims)):  # then by arrival
            excess = sum(e.size for e in self.entries.values() if e.in_memory) + entry.size - self.budget
            idle = [e for e in self.entries.values() if self._is_idle(e, claims) and not e.pinned]
            victims = self._enough(idle, [e.size for e in idle], excess)
            if victims is None:
                return
            for victim in victims:
                self._evict(victim, moves)
            entry.state = "loading"
            moves.load.append(entry.revision)

    def _begin_decode(self, moves: Moves, claims: Collection[str]) -> None:
        """Begins to merge at most one: a claimed delta before others, the most recently used first."""
        if any(e.decode == "loading" for e in self.entries.values()):
            return
        packed = [e for e in self.entries.values() if e.state == "resident" and not e.decode]
        for entry in sorted(packed, key=lambda e: (e.revision in claims, e.last_used), reverse=True):
            excess = sum(e.decoded_size for e in self.entries.values() if e.decode) + entry.decoded_size
            excess -= self.decoded_budget
            idle = [e for e in self.entries.values() if e.decode and self._is_idle(e, claims)]
            idle = idle if entry.revision in claims else []
            copies = self._enough(idle, [e.decoded_size for e in idle], excess)
            if copies is None:
                continue
            for copy in copies:
                copy.decode = ""
                moves.forget_decoded.append(copy.revision)
            entry.decode = "loading"
            moves.decode.append(entry.revision)
            return

    def _is_idle(self, entry: Entry, claims: Collection[str]) -> bool:
        return entry.state == "resident" and entry.decode != "loading" and entry.revision not in claims

    def _evict(self, entry: Entry, moves: Moves) -> None:
        del self.entries[entry.revision]
        moves.evict.append(entry.revision)

    def _enough(self, candidates: list[Entry], sizes: list[int], excess: int) -> list[Entry] | None:
        """Returns the candidates worth least that free `excess` bytes, None when all of them do not."""
        chosen: list[Entry] = []
        for entry, size in sorted(zip(candidates, sizes, strict=True), key=lambda pair: self._order(pair[0])):
            if excess <= 0:
                break
            chosen.append(entry)
            excess -= size
        return chosen if excess <= 0 else None

    def _order(self, entry: Entry) -> tuple[float, float]:
        return self._worths.get(entry.revision, math.inf), entry.last_used
