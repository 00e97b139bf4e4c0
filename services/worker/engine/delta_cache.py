"""Deltas in memory: joins the policy (`residency`) with the thread that does the work (`loader`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from deltaserve.errors import DeltaServeError, QuotaError
from services.worker.engine.deltas import DeltaWeights
from services.worker.engine.loader import Decoded, DeltaLoader, Event, Failed, Inspected, Loaded
from services.worker.engine.residency import Residency
from services.worker.messages import DeltaChanged, DeltaUse, Drop, FromEngine, Load, Rank, Wanted

_LOG = logging.getLogger(__name__)


class DeltaCache:
    """Carries out loads and evictions between steps and tells the front about them.

    Attributes:
        weights: the deltas that can run.
        evicted: deltas that left memory, ever.
    """

    def __init__(self, residency: Residency, loader: DeltaLoader, send: Callable[[FromEngine], None]) -> None:
        self.weights: dict[str, DeltaWeights] = {}
        self.residency = residency
        self._loader = loader
        self._send = send
        self._load_seconds: dict[str, float] = {}
        self._asked: set[str] = set()
        self.evicted = 0

    def handle(self, message: Load | Drop | Rank, now: float) -> None:
        """Takes an order of the front; `now` as for `update`."""
        match message:
            case Load():
                self.load(message)
            case Drop(revision):
                self.drop(revision)
            case Rank(worths):
                self.residency.rank(worths, now)

    def load(self, message: Load) -> None:
        """Begins to load a delta; one that is there is answered at once."""
        self._asked.discard(message.revision)
        known = message.revision in self.residency.entries
        self.residency.expect(message.revision, pinned=message.pinned)
        if not known:
            self._loader.inspect(message.revision, Path(message.folder))
        elif message.revision in self.weights:
            self._tell(message.revision)

    def drop(self, revision: str) -> None:
        """Lets go of a delta once nothing claims it."""
        entry = self.residency.entries.get(revision)
        if entry is None:
            self._send(DeltaChanged(revision=revision, state="dropped"))
        else:
            entry.dropping, entry.pinned = True, False

    def update(self, claims: set[str], now: float, first: str = "") -> list[tuple[str, str]]:
        """Takes in what the loader did, then begins what is next.

        Args:
            claims: deltas that sequences need.
            now: seconds, of any clock.
            first: the delta that others gave way to, "" for none; it loads before all others.

        Returns:
            Deltas that could not be loaded, with the reason: their sequences have failed.
        """
        failures = [failure for event in self._loader.events() if (failure := self._take_in(event)) is not None]
        moves = self.residency.moves(claims, now, first)
        self.evicted += len(moves.evict)
        for revision in moves.evict:
            self.weights.pop(revision, None)
            self._loader.forget(revision)
            self._send(DeltaChanged(revision=revision, state="dropped"))
        for revision in moves.forget_decoded:
            self.weights[revision].merged = {}
            self._loader.unmerge(revision)
            self._tell(revision)
        for revision in moves.load:
            self._loader.load(revision)
        for revision in moves.decode:
            self._loader.decode(self.weights[revision])
        self._ask(claims - {revision for revision, _ in failures})
        return failures

    def identity(self, revision: str) -> str:
        """Returns what tells the contents of a delta in memory from all others; the base has its own."""
        return self.weights[revision].identity if revision else "base"

    def uses(self, in_use: Callable[[str], int]) -> list[DeltaUse]:
        """Returns every delta in memory for Stats; `in_use` counts the sequences of a delta."""
        entries = self.residency.entries
        return [
            DeltaUse(revision=r, bytes=entries[r].bytes, in_use=in_use(r), decoded=bool(delta.merged))
            for r, delta in self.weights.items()
        ]

    def _ask(self, claims: set[str]) -> None:
        self._asked &= claims
        for revision in claims - self.residency.entries.keys() - self._asked:
            self._asked.add(revision)
            self._send(Wanted(revision=revision))

    def _take_in(self, event: Event) -> tuple[str, str] | None:
        """Notes an event; returns the delta and the reason if it is a failure."""
        match event:
            case Inspected(revision, size, decoded_size):
                try:
                    self.residency.want(revision, size, decoded_size)
                except QuotaError as error:
                    return self._fail(revision, error)
            case Loaded(delta, seconds):
                self.residency.loaded(delta.revision)
                self.weights[delta.revision] = delta
                self._load_seconds[delta.revision] = seconds
                self._tell(delta.revision)
            case Decoded(revision, merged):
                self.residency.decoded(revision)
                self.weights[revision].merged = merged
                self._tell(revision)
            case Failed(revision, error):
                return self._fail(revision, error)
        return None

    def _fail(self, revision: str, error: DeltaServeError) -> tuple[str, str]:
        _LOG.warning("delta %s failed: %s", revision, error.message)
        self.residency.failed(revision)
        self.weights.pop(revision, None)
        self._loader.forget(revision)
        changed = DeltaChanged(revision=revision, state="failed", error=error.message, error_code=error.reason)
        self._send(changed)
        return revision, error.message

    def _tell(self, revision: str) -> None:
        self._send(
            DeltaChanged(
                revision=revision,
                state="decoded" if self.weights[revision].merged else "resident",
                bytes=self.residency.entries[revision].bytes,
                load_seconds=self._load_seconds.get(revision, 0.0),
            )
        )
