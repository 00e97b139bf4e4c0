"""Which deltas are in memory (pure): two byte budgets, one for packed deltas and one for dense copies of hot ones.

A delta goes through wanted → loading → resident, and may then be decoded. Callers do the transfers and report back; this
module decides what is loaded, decoded and evicted. A claimed delta (one that sequences need) is never evicted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from deltaserve.errors import QuotaError


@dataclass(slots=True)
class Entry:
    """One delta. Bytes are zero while they are not taken."""

    revision: str
    size: int  # packed
    decoded_size: int  # of the dense copy
    pinned: bool = False
    state: str = "wanted"  # wanted, loading, resident
    decode: str = ""  # "", loading, resident
    dropping: bool = False
    last_used: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes that the delta takes now."""
        packed = self.size if self.state != "wanted" else 0
        return packed + (self.decoded_size if self.decode else 0)


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

    def want(self, revision: str, size: int, decoded_size: int, *, pinned: bool) -> None:
        """Asks for a delta; raises QuotaError when it can never fit."""
        pinned_bytes = sum(e.size for e in self.entries.values() if e.pinned)
        if size > self.budget - pinned_bytes:
            raise QuotaError(
                f"delta {revision} takes {size} bytes; the budget is {self.budget}, of which {pinned_bytes} are pinned",
                subject="delta_bytes",
            )
        self.entries[revision] = Entry(revision, size, decoded_size, pinned)

    def resident(self) -> set[str]:
        """Returns the deltas that can run."""
        return {e.revision for e in self.entries.values() if e.state == "resident"}

    def blocked(self) -> set[str]:
        """Returns the deltas that wait for room."""
        return {e.revision for e in self.entries.values() if e.state == "wanted"}

    def used(self) -> int:
        """Returns the bytes that all deltas take, dense copies and loads under way included."""
        return sum(e.bytes for e in self.entries.values())

    def moves(self, claims: Collection[str], now: float) -> Moves:
        """Decides the next moves and takes them as done (evictions) or begun (loads, decodes)."""
        for revision in claims:
            if revision in self.entries:
                self.entries[revision].last_used = now
        moves = Moves()
        for entry in [e for e in self.entries.values() if e.dropping and e.revision not in claims]:
            self._evict(entry, moves)
        self._begin_loads(moves, claims)
        self._begin_decode(moves, claims)
        return moves

    def loaded(self, revision: str) -> None:
        """Notes that a load is complete."""
        self.entries[revision].state = "resident"

    def decoded(self, revision: str) -> None:
        """Notes that a dense copy is complete."""
        self.entries[revision].decode = "resident"

    def failed(self, revision: str) -> None:
        """Forgets a delta whose load failed; unknown ones are ignored."""
        self.entries.pop(revision, None)

    def _begin_loads(self, moves: Moves, claims: Collection[str]) -> None:
        wanted = [e for e in self.entries.values() if e.state == "wanted"]
        for entry in sorted(wanted, key=lambda e: e.revision not in claims):  # stable: then in order of arrival
            used = sum(e.size for e in self.entries.values() if e.state != "wanted")
            for victim in self._victims(used + entry.size - self.budget, claims):
                self._evict(victim, moves)
                used -= victim.size
            if used + entry.size > self.budget:
                return
            entry.state = "loading"
            moves.load.append(entry.revision)

    def _victims(self, excess: int, claims: Collection[str]) -> list[Entry]:
        """Returns the least recently used deltas that free `excess` bytes, none when they cannot."""
        idle = [e for e in self.entries.values() if self._is_idle(e, claims)]
        victims: list[Entry] = []
        for entry in sorted(idle, key=lambda e: e.last_used):
            if excess <= 0:
                break
            victims.append(entry)
            excess -= entry.size
        return victims if excess <= 0 else []

    def _is_idle(self, entry: Entry, claims: Collection[str]) -> bool:
        return entry.state == "resident" and not entry.pinned and entry.revision not in claims

    def _evict(self, entry: Entry, moves: Moves) -> None:
        if entry.state == "loading" or entry.decode == "loading":
            return  # once it has arrived
        del self.entries[entry.revision]
        moves.evict.append(entry.revision)

    def _begin_decode(self, moves: Moves, claims: Collection[str]) -> None:
        """Begins at most one dense copy: of the most recently used delta that has none and fits."""
        if any(e.decode == "loading" for e in self.entries.values()):
            return
        packed = [e for e in self.entries.values() if e.state == "resident" and not e.decode and e.revision in claims]
        for entry in sorted(packed, key=lambda e: e.last_used, reverse=True):
            copies = [e for e in self.entries.values() if e.decode]
            excess = sum(e.decoded_size for e in copies) + entry.decoded_size - self.decoded_budget
            for copy in sorted((e for e in copies if e.revision not in claims), key=lambda e: e.last_used):
                if excess <= 0:
                    break
                copy.decode = ""
                moves.forget_decoded.append(copy.revision)
                excess -= copy.decoded_size
            if excess <= 0:
                entry.decode = "loading"
                moves.decode.append(entry.revision)
                return
