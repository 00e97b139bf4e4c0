"""Who runs which delta, and who has to give way to a delta that waits too long (pure).

Requests of deltas that are in memory and running pass those of other deltas (skip-the-line). A delta that has waited
longer than `wait` gets the turn of the delta that has had its own for longest, but at least for `wait` and for one
token: turns too short to recompute a preempted prompt would go round for ever. So with D deltas waiting for N turns
nobody waits longer than wait × (1 + ⌈D / N⌉) and D + 2 steps, and every turn is worth its switch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from services.worker.engine.sequence import Sequence


class Turns:
    """Deltas with a turn, those that gave theirs up, and the sequence they gave it up for.

    Attributes:
        yielded: deltas that may not run, and may be evicted, until `favoured` runs.
        favoured: the sequence that others gave way to.
        given_up: turns that were given up, ever.
    """

    def __init__(self, deltas: int, wait: float) -> None:
        self._deltas = deltas
        self._wait = wait
        self._running: Counter[str] = Counter()
        self._since: dict[str, float] = {}
        self._fruitful: set[str] = set()  # deltas that have generated a token in this turn
        self.yielded: set[str] = set()
        self.favoured: Sequence | None = None
        self.given_up = 0

    @property
    def favoured_revision(self) -> str:
        """The delta of the favoured sequence, "" when there is none."""
        return self.favoured.revision if self.favoured else ""

    def allow(self, deltas: int) -> None:
        """Sets how many deltas may run at once; those that do go on until they end or give way."""
        self._deltas = deltas

    def has_turn(self, revision: str) -> bool:
        """Whether a sequence of the delta runs; the base always counts as running."""
        return not revision or self._running[revision] > 0

    def may_start(self, revision: str) -> bool:
        """Whether a sequence of this revision may begin to run now."""
        if self.has_turn(revision):
            return True
        return not self.held_back(revision) and len(self._since) < self._deltas

    def held_back(self, revision: str) -> bool:
        """Whether the delta may not get a turn before the favoured sequence has run."""
        return self.favoured is not None and self.favoured.revision != revision and not self.has_turn(revision)

    def started(self, sequence: Sequence, now: float) -> None:
        """Notes that a sequence runs; its delta's turn begins if it had none."""
        if self.favoured and sequence.revision == self.favoured.revision:
            self.end_favour()
        if sequence.revision:
            self._running[sequence.revision] += 1
            self._since.setdefault(sequence.revision, now)

    def stopped(self, sequence: Sequence) -> None:
        """Notes that a sequence no longer runs; its delta's turn ends with the last."""
        if not sequence.revision:
            return
        self._running[sequence.revision] -= 1
        if not self._running[sequence.revision]:
            del self._running[sequence.revision], self._since[sequence.revision]
            self._fruitful.discard(sequence.revision)

    def generated(self, revision: str) -> None:
        """Notes that a sequence of the delta got a token."""
        if revision in self._since:
            self._fruitful.add(revision)

    def end_favour(self) -> None:
        """Lets everyone run again."""
        self.favoured = None
        self.yielded.clear()

    def starves(self, sequence: Sequence, now: float) -> bool:
        """Whether others have passed a waiting sequence for too long."""
        return not sequence.paused and now - sequence.waiting_since > self._wait

    def lacks_turn(self, sequence: Sequence) -> bool:
        """Whether all turns are taken by other deltas."""
        return not self.has_turn(sequence.revision) and len(self._since) >= self._deltas

    def give_way(self, sequence: Sequence, candidates: Collection[str], now: float) -> str | None:
        """Takes the turn of one of `candidates` for a starving sequence.

        Candidates without a turn (only their memory is wanted) give way as if their turn had just become long enough.
        Returns the delta that gives way, None when every turn is still too short.
        """
        others = [r for r in candidates if r != sequence.revision and r not in self.yielded and self._may_end(r, now)]
        longest = min(others, key=lambda r: (self._since.get(r, now - self._wait), r), default=None)
        if longest is None:
            return None
        self.favoured = sequence
        self.yielded.add(longest)
        self.given_up += 1
        return longest

    def _may_end(self, revision: str, now: float) -> bool:
        """Whether a turn was long enough."""
        since = self._since.get(revision)
        return since is None or (now - since >= self._wait and revision in self._fruitful)

    @property
    def active(self) -> Collection[str]:
        """Deltas that have a turn."""
        return self._since.keys()
