"""Where requests wait for a worker: a line for each base, since those of different bases compete for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.router.admission.fair import RESUMED, Claim, FairQueue
from services.router.admission.gate import Gate
from services.router.admission.waits import Throughput
from services.router.flight import Flight
from services.router.routing import Room


class Line:
    """What waits for workers of one base, in fair order, and how fast it moves."""

    def __init__(self, gate: Gate) -> None:
        self.queue: FairQueue[Flight] = FairQueue()
        self.throughput = Throughput()
        self._gate = gate

    def push(self, flight: Flight, claim: Claim, now: float) -> None:
        """Adds a request; one that was on a worker already goes before all that were not."""
        if flight.lost is not None:
            claim = Claim(claim.key, claim.model, claim.weight, claim.cost, RESUMED)
        flight.waiting_since = now
        self.queue.push(flight, claim)
        self._gate.queued(flight.caller, claim, 1, now)
        self.throughput.backlog(now, waiting=True)

    def drop(self, flight: Flight, now: float, *, served: bool = False) -> None:
        """Takes a request out: because it is served, or because nobody waits for it any more."""
        (self.queue.serve if served else self.queue.remove)(flight)
        if flight.claim is not None:
            self._gate.queued(flight.caller, flight.claim, -1, now)
        self.throughput.backlog(now, waiting=len(self.queue) > 0)

    def expected(self, ahead: int, workers: Iterable[Room]) -> float | None:
        """Returns the seconds until the first step of a request with so many ahead; None when nothing is known.

        Args:
            ahead: requests of this line that come before.
            workers: those that serve the base.
        """
        rooms = list(workers)
        excess = [room.outstanding - room.max_running for room in rooms]
        if not ahead and any(beyond < 0 for beyond in excess):
            return 0.0
        known = rooms and all(room.service_seconds for room in rooms)
        prior = sum(room.max_running / room.service_seconds for room in rooms) if known else None
        rate = self.throughput.rate(prior)
        return None if not rate else (ahead + 1 + sum(max(0, beyond) for beyond in excess)) / rate


class Lines:
    """The lines of all bases."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._by_base: dict[str, Line] = {}

    def __len__(self) -> int:
        return sum(len(line.queue) for line in self._by_base.values())

    def __iter__(self) -> Iterator[Line]:
        return iter(list(self._by_base.values()))

    def of(self, flight: Flight) -> Line:
        """Returns the line of a flight's base."""
        base = flight.target.base_fingerprint
        if base not in self._by_base:
            self._by_base[base] = Line(self._gate)
        return self._by_base[base]
