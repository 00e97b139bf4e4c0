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

from collections.abc import Iterable, Mapping, Sequence

from services.router.copies import copies
from services.router.costs import LoadCosts, Tier
from services.router.orders import disk_orders, memory_orders
from services.router.plan import Decision, Demand, Placed, Rules, WorkerState
from services.router.ring import ring_of

_TRIES = 8  # workers with room are looked for among so many on the ring


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
        for revision in {r for r, h in worker.held.items() if h.tier >= Tier.DEVICE} | worker.arriving.keys():
            holders.setdefault(revision, []).append(worker)
    ranked = _ranked(demands, holders, rules, costs)
    placed = _assign(ranked, fleet, holders, rules)
    return Decision(placed, [*memory_orders(placed, fleet, rules), *disk_orders(placed, fleet, rules)])


def _ranked(
    demands: Iterable[Demand], holders: Mapping[str, list[WorkerState]], rules: Rules, costs: LoadCosts
) -> list[tuple[float, Demand]]:
    """Returns demands with their worth, in the order in which they get places."""
    rows = []
    least = min(rules.prefetch_probability, rules.disk_probability)
    fixed = costs.expected(Tier.DISK, 0)
    per_byte = (costs.expected(Tier.DISK, 1 << 30) - fixed) / (1 << 30)
    for demand in demands:
        revision, probability = demand.revision, demand.probability
        held = revision in holders
        if probability < least and not held and not demand.pinned:
            continue
        worth = probability * (fixed / (demand.bytes or 1) + per_byte) * 1e9
        rows.append((not demand.pinned, -worth * (rules.keep if held else 1.0), revision, worth, demand))
    rows.sort()  # no two have the same revision, so demands are never compared
    return [row[3:] for row in rows]


def _assign(
    ranked: Sequence[tuple[float, Demand]],
    fleet: Sequence[WorkerState],
    holders: Mapping[str, list[WorkerState]],
    rules: Rules,
) -> dict[str, Placed]:
    """Gives every revision its workers, as far as there is room; what is in use or arriving keeps its room."""
    free = {worker.name: worker.budget - _taken(worker) for worker in fleet}
    ring = ring_of(tuple(free))
    places = sum(w.places for w in fleet) / len(fleet)
    per_copy = sum(w.service_seconds for w in fleet) / len(fleet) / max(places * rules.share, 1e-9)
    placed = {}
    for worth, demand in ranked:
        revision = demand.revision
        held = holders.get(revision, ())
        wanted = len(fleet) if demand.pinned else copies(demand.rate * per_copy, len(held), len(fleet))
        after = ring.after(revision, max(_TRIES, 2 * wanted))
        chosen = [w.name for w in held if _stays(w, revision)]
        candidates = [w.name for w in held if not _stays(w, revision)]
        if demand.pinned or demand.probability >= rules.prefetch_probability:
            candidates += [name for name in after if name not in candidates and name not in chosen]
        for name in candidates:
            if len(chosen) >= wanted:
                break
            if free[name] >= demand.bytes:
                chosen.append(name)
                free[name] -= demand.bytes
        disk = "" if chosen or demand.probability < rules.disk_probability else after[0]
        placed[revision] = Placed(demand, worth, wanted, tuple(chosen), disk)
    return placed


def _stays(worker: WorkerState, revision: str) -> bool:
    held = worker.held.get(revision)
    return revision in worker.arriving or (held is not None and held.in_use > 0)


def _taken(worker: WorkerState) -> int:
    used = sum(held.bytes for held in worker.held.values() if held.in_use and held.tier >= Tier.DEVICE)
    return used + sum(size for r, size in worker.arriving.items() if r not in worker.held or not worker.held[r].in_use)
