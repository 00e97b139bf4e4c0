"""Which worker serves a request: the one where its first token is expected soonest. Pure and deterministic.

The score is the expected wait for a place in a step plus the expected time until the delta is in memory, less
the prefill that a reported prefix cache saves, in seconds.
Requests of one cold model meet on one worker, and routers that know the same things choose the same, because ties are
broken by a hash of (revision, worker) and never by order of arrival.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from services.router.costs import LoadCosts, Tier

_COSTS = LoadCosts()


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What a router knows about a worker.

    Attributes:
        name: the worker's own.
        base_fingerprint: of the base it serves.
        outstanding: requests it runs or holds waiting, from all routers.
        max_running: most requests a step holds.
        step_seconds: mean time of a step lately; 0 when unknown.
        service_seconds: mean time a request occupies its place in a step.
        delta_bytes_free: room for further deltas without evicting any.
        tiers: revisions above the store.
        expected: revisions that requests already sent there need, resident or not.
        arriving: revisions on their way to memory there → share of their bytes that is still to come.
        costs: of loads, as far as the worker measured them.
    """

    name: str
    base_fingerprint: str
    outstanding: int
    max_running: int
    step_seconds: float = 0.0
    service_seconds: float = 1.0
    delta_bytes_free: int = 0
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    expected: Collection[str] = frozenset()
    arriving: Mapping[str, float] = field(default_factory=dict)
    costs: LoadCosts = _COSTS


_EVICTION_SECONDS = 0.05  # what pushing another delta out is taken to cost whoever needs it next


@dataclass(frozen=True, slots=True)
class Room:
    """The part of a WorkerView that tells how full a worker is, for those who need no more.

    Attributes:
        outstanding: requests it runs or holds waiting, from all routers.
        max_running: most requests a step holds.
        service_seconds: mean time a request occupies its place in a step; 0 when it has not been measured.
    """

    outstanding: int
    max_running: int
    service_seconds: float = 0.0


def has_room(worker: WorkerView | Room, backlog: int) -> bool:
    """Tells whether a worker takes another request: at most `backlog` more than one step of it holds."""
    return worker.outstanding < worker.max_running + backlog


def score(worker: WorkerView, revision: str, delta_bytes: int, benefit: float = 0.0) -> float:
    """Seconds until the first step of a new request can be expected on a worker, less what its prefix cache saves.

    Args:
        worker: the candidate.
        revision: `<model>@<revision>`, or empty for the base, which needs no delta.
        delta_bytes: size of the packed delta.
        benefit: seconds of prefill that the worker's prefix cache saves the request.
    """
    return _expected(worker, _ready(worker, revision, delta_bytes), benefit)


def choose(
    workers: Iterable[WorkerView],
    revision: str,
    delta_bytes: int,
    backlog: int,
    benefits: Mapping[str, float] = MappingProxyType({}),
) -> WorkerView | None:
    """Returns the worker with the lowest score among those with room, or None when none has any.

    Args:
        workers: the candidates.
        revision: `<model>@<revision>`, or empty for the base.
        delta_bytes: size of the packed delta.
        backlog: see `has_room`.
        benefits: seconds that the prefix caches of some workers save the request, by name.
    """
    open_ = [w for w in workers if has_room(w, backlog)]
    if not open_:
        return None

    def key(worker: WorkerView) -> tuple[float, float, bytes]:
        ready = _ready(worker, revision, delta_bytes)
        load = worker.outstanding / max(worker.max_running, 1)
        expected = _expected(worker, ready, benefits.get(worker.name, 0.0))
        # a cold model goes where its hash says, so that its deltas do not wander; a warm one spreads by load
        return round(expected, 3), load if ready == 0.0 else 0.0, _affinity(revision, worker.name)

    return min(open_, key=key)


def _wait(worker: WorkerView) -> float:
    slots = max(worker.max_running, 1)
    fuller_steps = worker.step_seconds * worker.outstanding / slots
    ahead = worker.outstanding - slots + 1
    return fuller_steps + (ahead / slots * worker.service_seconds if ahead > 0 else 0.0)


def _expected(worker: WorkerView, ready: float, benefit: float) -> float:
    return _wait(worker) + ready - benefit


def _ready(worker: WorkerView, revision: str, delta_bytes: int) -> float:
    if not revision:
        return 0.0
    tier = worker.tiers.get(revision, Tier.STORE)
    seconds = worker.costs.expected(tier, delta_bytes)
    if seconds == 0.0:
        return 0.0
    if revision in worker.arriving:
        return min(seconds * worker.arriving[revision] + worker.costs.expected(Tier.DISK, delta_bytes), seconds)
    if revision in worker.expected:
        return seconds / 2  # under way since an unknown while
    if worker.delta_bytes_free < delta_bytes:
        seconds += _EVICTION_SECONDS
    return seconds


def _affinity(revision: str, worker: str) -> bytes:
    return hashlib.blake2b(f"{revision}\0{worker}".encode(), digest_size=8).digest()
