"""From where deltas should be to what workers are told: few loads at a time, drops only to make room. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from services.router.costs import Tier
from services.router.plan import Order, Placed, Rules, WorkerState


def memory_orders(placed: Mapping[str, Placed], fleet: Sequence[WorkerState], rules: Rules) -> Iterator[Order]:
    """Yields what brings the workers' memories to their targets, probable revisions only."""
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


def _bring(due: Sequence[Placed], keep: set[str], placed: Mapping[str, Placed], worker: WorkerState) -> Iterator[Order]:
    """Yields loads, each after the idle deltas without a place here that must go for it, the least worth first."""
    memory = {r: h for r, h in worker.held.items() if h.tier >= Tier.DEVICE}
    free = worker.budget - sum(h.bytes for h in memory.values()) - sum(worker.arriving.values())
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


def disk_orders(placed: Mapping[str, Placed], fleet: Sequence[WorkerState], rules: Rules) -> Iterator[Order]:
    """Yields what brings revisions without a place in memory to a disk with room."""
    free = {worker.name: worker.disk_free for worker in fleet}
    under_way = {worker.name: len(worker.to_disk) for worker in fleet}
    on_disk = {revision for worker in fleet for revision in (*worker.held, *worker.arriving, *worker.to_disk)}
    for revision, place in placed.items():
        size = place.demand.bytes
        if not place.disk or revision in on_disk:
            continue
        if under_way[place.disk] < rules.loads and size <= free[place.disk]:
            under_way[place.disk] += 1
            free[place.disk] -= size
            why = f"asked for soon with probability {place.demand.probability:.2f}; no room in memory"
            yield Order(place.disk, revision, Tier.DISK, why)
