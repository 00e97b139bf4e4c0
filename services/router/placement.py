"""Which deltas should be where, and what to order for it: a pure, deterministic function of demand and reports.

Nothing is remembered from one decision to the next. What is in place already is part of the reports and is worth more
than what is not, which is the hysteresis; so routers that have the same reports decide the same, and a restarted one
goes on where it left off. No clock and no gRPC: the fleet simulator calls this as the router does.

1. The worth of keeping a revision in memory is its probability of being asked for soon times the seconds that loading
   it from disk would take, a byte.
2. By falling worth (pins first; what is in memory already counts `keep` times) every revision gets its copies on
   workers with room: those that hold it, then those that follow its hash on the ring of workers.
3. What is to be in memory and is not is ordered, probable ones only, and at most `loads` at a time on each worker, so
   that decoding never bunches; idle deltas that got no place are dropped as far as that needs room.
4. Probable revisions without a place in memory are brought to the disk of the worker that their hash names.
"""

from __future__ import annotations

import zlib
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.router.copies import copies
from services.router.costs import LoadCosts, Tier

_POINTS = 16  # of each worker on the ring


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be tuned.

    Attributes:
        prefetch_probability: least probability at which a revision is brought to memory before it is asked for.
        disk_probability: the same for a worker's disk.
        keep: how many times its worth what is in memory counts; a challenger must be better by as much.
        share: of a worker's places in a step that one revision may take before it gets another copy.
        loads: most loads under way on a worker for placement to order another.
        least: probability below which a revision has no claim to a place.
    """

    prefetch_probability: float = 0.3
    disk_probability: float = 0.05
    keep: float = 1.5
    share: float = 0.5
    loads: int = 1
    least: float = 1e-4


@dataclass(frozen=True, slots=True)
class Demand:
    """What is expected of one revision.

    Attributes:
        revision: `<model>@<revision>`.
        bytes: of the packed delta.
        probability: of a request soon.
        rate: requests a second to provide for.
        pinned: whether a user wants it in memory everywhere, whatever the demand.
    """

    revision: str
    bytes: int
    probability: float = 0.0
    rate: float = 0.0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A delta above the store on one worker."""

    tier: Tier
    bytes: int
    in_use: int = 0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker reported.

    Attributes:
        name: its own.
        budget: bytes that deltas may take in memory.
        disk_free: bytes that deltas may still take on disk.
        places: requests that a step holds.
        service_seconds: that a request keeps its place.
        held: revisions above the store.
        arriving: revisions on their way to memory or disk.
    """

    name: str
    budget: int
    disk_free: int = 0
    places: int = 1
    service_seconds: float = 1.0
    held: Mapping[str, Held] = field(default_factory=dict)
    arriving: frozenset[str] = frozenset()

    def in_memory(self, revision: str) -> bool:
        """Whether the revision can run here without a load."""
        held = self.held.get(revision)
        return held is not None and held.tier >= Tier.DEVICE


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to tell a worker: bring a revision to a tier; Tier.STORE lets go of it."""

    worker: str
    revision: str
    tier: Tier
    reason: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one revision should be.

    Attributes:
        demand: as it was given.
        worth: seconds a gigabyte that keeping it in memory is expected to save.
        copies: how many were wanted.
        memory: workers that should hold it in memory.
        disk: a worker that should have it on disk; empty: none in particular.
    """

    demand: Demand
    worth: float
    copies: int
    memory: tuple[str, ...] = ()
    disk: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """One round of placement: revisions by falling worth, and orders."""

    placed: Mapping[str, Placed] = field(default_factory=dict)
    orders: Sequence[Order] = ()

    def worths(self, worker: WorkerState) -> dict[str, float]:
        """Returns the worth of every delta in the worker's memory: what it should evict last is worth most."""
        return {
            revision: self.placed[revision].worth if revision in self.placed else 0.0
            for revision, held in worker.held.items()
            if held.tier >= Tier.DEVICE
        }


def decide(demands: Iterable[Demand], workers: Iterable[WorkerState], rules: Rules, costs: LoadCosts) -> Decision:
    """Decides where revisions of one base should be on the workers that serve it; the order of arguments is no matter.

    Args:
        demands: each revision once; those of no probability may be left out.
        workers: that take requests.
        rules: see there.
        costs: of loads, over all workers.
    """
    fleet = sorted(workers, key=lambda w: w.name)
    if not fleet:
        return Decision()
    holders: dict[str, list[WorkerState]] = {}
    for worker in fleet:
        for revision, held in worker.held.items():
            if held.tier >= Tier.DEVICE:
                holders.setdefault(revision, []).append(worker)
    ranked = _ranked(demands, holders, rules, costs)
    placed = _assign(ranked, fleet, holders, rules)
    return Decision(placed, [*_memory_orders(placed, fleet, rules), *_disk_orders(placed, fleet, rules)])


def _ranked(
    demands: Iterable[Demand], holders: Mapping[str, list[WorkerState]], rules: Rules, costs: LoadCosts
) -> list[tuple[float, Demand]]:
    """Returns demands with their worth, in the order in which they get places."""
    rows = []
    fixed, per_byte = costs.expected(Tier.DISK, 0), costs.expected(Tier.DISK, 1 << 30) / (1 << 30)
    per_byte -= fixed / (1 << 30)
    for demand in demands:
        held = demand.revision in holders
        if demand.probability < rules.least and not held and not demand.pinned:
            continue
        worth = demand.probability * (fixed / max(demand.bytes, 1) + per_byte) * 1e9
        rows.append((not demand.pinned, -worth * (rules.keep if held else 1.0), demand.revision, worth, demand))
    rows.sort(key=lambda row: row[:3])
    return [(row[3], row[4]) for row in rows]


def _assign(
    ranked: Sequence[tuple[float, Demand]],
    fleet: Sequence[WorkerState],
    holders: Mapping[str, list[WorkerState]],
    rules: Rules,
) -> dict[str, Placed]:
    """Gives every revision its workers, as far as there is room."""
    free = {worker.name: worker.budget for worker in fleet}
    smallest = min((d.bytes for _, d in ranked), default=0)
    open_ = sum(room >= smallest for room in free.values())
    ring = Ring(fleet)
    places = sum(w.places for w in fleet) / len(fleet)
    service = sum(w.service_seconds for w in fleet) / len(fleet)
    placed = {}
    for worth, demand in ranked:
        held = holders.get(demand.revision, ())
        load = demand.rate * service / (places * rules.share)
        wanted = len(fleet) if demand.pinned else copies(load, len(held), len(fleet))
        chosen: list[str] = []
        if open_:
            for worker in _candidates(demand.revision, held, ring):
                if free[worker.name] >= demand.bytes:
                    chosen.append(worker.name)
                    free[worker.name] -= demand.bytes
                    open_ -= free[worker.name] < smallest
                    if len(chosen) == wanted:
                        break
        disk = "" if chosen or demand.probability < rules.disk_probability else next(ring.after(demand.revision)).name
        placed[demand.revision] = Placed(demand, worth, wanted, tuple(chosen), disk)
    return placed


def _candidates(revision: str, held: Sequence[WorkerState], ring: Ring) -> Iterator[WorkerState]:
    # those that use it come first: their copy cannot go anyway
    yield from sorted(held, key=lambda w: (-w.held[revision].in_use, w.name))
    names = {worker.name for worker in held}
    for worker in ring.after(revision):
        if worker.name not in names:
            yield worker


def _memory_orders(placed: Mapping[str, Placed], fleet: Sequence[WorkerState], rules: Rules) -> Iterator[Order]:
    targets: dict[str, list[Placed]] = {worker.name: [] for worker in fleet}
    for place in placed.values():  # by falling worth
        for name in place.memory:
            targets[name].append(place)
    for worker in fleet:
        wanted = targets[worker.name]
        allowance = rules.loads - len(worker.arriving)
        due = [p for p in wanted if _is_due(p, worker, rules)][: max(0, allowance)]
        if due:
            keep = {p.demand.revision for p in wanted}
            yield from _bring(due, keep, placed, worker)


def _is_due(place: Placed, worker: WorkerState, rules: Rules) -> bool:
    demand = place.demand
    if worker.in_memory(demand.revision) or demand.revision in worker.arriving:
        return False
    return demand.pinned or demand.probability >= rules.prefetch_probability


def _bring(
    due: Sequence[Placed], keep: set[str], placed: Mapping[str, Placed], worker: WorkerState
) -> Iterator[Order]:
    """Yields loads, each after the idle deltas without a place here that must go for it, the least worth first."""
    memory = {r: h for r, h in worker.held.items() if h.tier >= Tier.DEVICE}
    free = worker.budget - sum(h.bytes for h in memory.values())
    idle = [r for r, h in memory.items() if not h.in_use and r not in keep]
    idle.sort(key=lambda r: (placed[r].worth if r in placed else 0.0, r), reverse=True)
    for place in due:
        revision, victims = place.demand.revision, list[str]()
        while free < place.demand.bytes and idle:
            victims.append(idle.pop())
            free += memory[victims[-1]].bytes
        if free < place.demand.bytes:
            return  # what is in the way is in use
        free -= place.demand.bytes
        for victim in victims:
            yield Order(worker.name, victim, Tier.STORE, f"makes room for {revision}")
        yield Order(worker.name, revision, Tier.DEVICE, _why(place, worker))


def _why(place: Placed, worker: WorkerState) -> str:
    demand = place.demand
    if demand.pinned:
        return "pinned"
    if len(place.memory) > 1 and place.memory[0] != worker.name:
        return f"copy {place.memory.index(worker.name) + 1} of {place.copies} for {demand.rate:.2f} requests/s"
    return f"asked for soon with probability {demand.probability:.2f}"


def _disk_orders(placed: Mapping[str, Placed], fleet: Sequence[WorkerState], rules: Rules) -> Iterator[Order]:
    free = {worker.name: worker.disk_free for worker in fleet}
    under_way = {worker.name: len(worker.arriving) for worker in fleet}
    on_disk = {revision for worker in fleet for revision in (*worker.held, *worker.arriving)}
    for revision, place in placed.items():
        size = place.demand.bytes
        if not place.disk or revision in on_disk:
            continue
        if under_way[place.disk] < rules.loads and size <= free[place.disk]:
            under_way[place.disk] += 1
            free[place.disk] -= size
            why = f"asked for soon with probability {place.demand.probability:.2f}; no room in memory"
            yield Order(place.disk, revision, Tier.DISK, why)


class Ring:
    """Workers on a ring, each at several points, so that one more or less moves few revisions (consistent hashing)."""

    def __init__(self, workers: Sequence[WorkerState]) -> None:
        points = sorted((_hash(f"{w.name}\0{i}"), w.name, w) for w in workers for i in range(_POINTS))
        self._hashes = [point[0] for point in points]
        self._workers = [point[2] for point in points]
        self._count = len(workers)

    def after(self, revision: str) -> Iterator[WorkerState]:
        """Yields each worker once, in the order in which they follow the revision's hash."""
        begin = bisect(self._hashes, _hash(revision))
        seen: set[str] = set()
        for offset in range(len(self._workers)):
            worker = self._workers[(begin + offset) % len(self._workers)]
            if worker.name not in seen:
                seen.add(worker.name)
                yield worker
                if len(seen) == self._count:
                    return


def _hash(text: str) -> int:
    # crc32 of near-equal names is not spread well: multiplied by an odd constant it is (Knuth)
    return zlib.crc32(text.encode()) * 2654435761 & 0xFFFFFFFF
