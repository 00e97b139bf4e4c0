"""Rounds of placement: gathers what workers report, decides, and tells them; the decision itself is `placement`.

A round happens at the multiples of `placement_seconds` of the wall clock, so that all routers hold theirs at the same
moments and see the same reports. It computes in a thread: streams go on meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deltaserve.catalog import ModelRecord
from deltaserve.names import RevisionName
from deltaserve.v1.inference_pb2 import Residency
from deltaserve.v1.inference_pb2 import Tier as TierValue
from deltaserve.v1.worker_pb2 import StateReport, Welcome
from services.router.costs import LoadCosts, Tier
from services.router.feed import Feed
from services.router.fleet import Fleet
from services.router.forecasts import Forecast, Forecasts
from services.router.link import load_samples
from services.router.metrics import RouterMetrics
from services.router.placement import decide
from services.router.plan import Demand, Held, Order, Placed, WorkerState
from services.router.settings import RouterSettings

log = logging.getLogger(__name__)

_KEPT_ORDERS = 200


@dataclass(frozen=True, slots=True)
class Published:
    """What the store says of a revision; `bytes` of an older one are those of the newest."""

    bytes: int
    base: str
    pinned: bool
    former: str  # the revision before, if this is the newest


@dataclass(frozen=True, slots=True)
class Round:
    """What a round decided.

    Attributes:
        at: seconds since 1970.
        seconds: that it took.
        placed: revisions of all bases, by falling worth within each.
        forecasts: of these revisions.
        digest: hash of all targets.
    """

    at: float = 0.0
    seconds: float = 0.0
    placed: Mapping[str, Placed] = field(default_factory=dict)
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    digest: str = ""


class Heard(NamedTuple):
    """What a worker said of itself, at first and last."""

    welcome: Welcome
    report: StateReport


class Placer:
    """Holds rounds.

    Attributes:
        last: the last round.
        orders: the last orders with their time, newest first.
    """

    def __init__(self, settings: RouterSettings, fleet: Fleet, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self.last = Round()
        self.orders: deque[tuple[float, Order]] = deque(maxlen=_KEPT_ORDERS)
        self._settings = settings
        self._rules = settings.placement_rules()
        self._fleet = fleet
        self._feed = Feed()
        self._forecasts: Forecasts | None = None
        self._published: dict[str, Published] = {}
        self._listing: list[tuple[str, tuple[str, ...], bool]] = []
        self._busy = asyncio.Lock()

    @property
    def horizon(self) -> float:
        """Seconds that placement looks ahead."""
        return self._settings.prefetch_seconds

    def published(self, records: Sequence[ModelRecord]) -> None:
        """Takes what the store publishes now."""
        listing = [(record.name, record.revisions, record.pinned) for record in records]
        if listing == self._listing:
            return
        found: dict[str, Published] = {}
        for record in records:
            manifest, names = record.manifest, [str(RevisionName(record.name, r)) for r in record.revisions]
            for name in names:
                newest = name == names[-1]
                former = names[-2] if newest and len(names) > 1 else ""
                size, base = manifest.sizes.delta_bytes, manifest.base.fingerprint
                found[name] = Published(size, base, record.pinned and newest, former)
        self._published, self._listing = found, listing

    async def run(self) -> None:
        """Holds a round at every multiple of `placement_seconds`, until cancelled; never where that is 0."""
        period = self._settings.placement_seconds
        while period:
            now = time.time()
            at = (now // period + 1) * period
            await asyncio.sleep(at - now)
            try:
                await self.round(at)
            except Exception:  # placement only makes things faster: requests are served without it
                log.exception("a round of placement failed")

    async def round(self, now: float) -> None:
        """Decides and sends orders; `now` is seconds since 1970."""
        async with self._busy:
            links = {link.name: link for link in self._fleet.links() if link.connected and link.welcome is not None}
            for name, link in links.items():
                while link.arrivals:
                    news = link.arrivals.popleft().revisions
                    self._feed.take(name, ((ms, entry.revision) for entry in news for ms in entry.unix_ms))
            # reports are replaced when new ones come, never changed, so the thread may read them
            heard = [Heard(link.welcome, link.report) for link in links.values() if link.serving and link.welcome]
            self.last, orders, worths = await asyncio.to_thread(self._decide, now, heard)
            for order in orders:
                log.info("worker %s: %s to %s, %s", order.worker, order.revision, order.tier.name, order.reason)
                links[order.worker].place(order.revision, TierValue.ValueType(order.tier))
                self.orders.appendleft((now, order))
                self._metrics.ordered(order.worker, order.revision, order.tier)
            for name, values in worths.items():
                links[name].rank(values)

    async def next_request(self, revision: str) -> float | None:
        """Returns the median time until a revision's next request, from the last round on; None: over a day."""
        async with self._busy:
            return self._forecasts.next_seconds(revision, self.last.at) if self._forecasts else None

    def _decide(self, now: float, heard: Sequence[Heard]) -> tuple[Round, list[Order], dict[str, dict[str, float]]]:
        """Returns the round, the orders, and by worker what the deltas in its memory are worth."""
        begin = time.perf_counter()
        arrived = self._feed.settled(now)
        if self._forecasts is None:
            self._forecasts = Forecasts(arrived[0][0] if arrived else now)
        for at, revision in arrived:
            self._forecasts.arrived(revision, at)
        fleets: dict[str, list[WorkerState]] = {}
        for welcome, report in heard:
            fleets.setdefault(welcome.base_fingerprint, []).append(self._state(welcome, report))
        demands = self._demands(now, self._forecasts)
        costs = LoadCosts().measured(sample for _, report in heard for sample in load_samples(report))
        placed, orders, worths = dict[str, Placed](), list[Order](), dict[str, dict[str, float]]()
        for base, workers in fleets.items():
            decision = decide(demands.get(base, ()), workers, self._rules, costs)
            placed.update(decision.placed)
            orders += decision.orders
            worths.update((worker.name, values) for worker in workers if (values := decision.worths(worker)))
        forecasts = {name: self._forecasts.forecast(name, now, self.horizon) for name in placed}
        took = time.perf_counter() - begin
        return Round(now, took, placed, forecasts, digest_of(placed)), orders, worths

    def _demands(self, now: float, forecasts: Forecasts) -> dict[str, list[Demand]]:
        horizon, demands = self._settings.prefetch_seconds, dict[str, list[Demand]]()
        for name, known in self._published.items():
            if known.former and name not in forecasts:
                forecasts.inherit(name, known.former)
            if name in forecasts or known.pinned:
                f = forecasts.forecast(name, now, horizon)
                demand = Demand(name, known.bytes, f.probability, f.rate, known.pinned)
                demands.setdefault(known.base, []).append(demand)
        return demands

    def _state(self, welcome: Welcome, report: StateReport) -> WorkerState:
        return WorkerState(
            name=welcome.worker,
            budget=report.delta_bytes_budget,
            disk_free=max(0, report.disk_bytes_budget - report.disk_bytes_used),
            places=max(welcome.max_running, 1),
            service_seconds=report.service_time.ToNanoseconds() / 1e9 or 1.0,
            held={r.revision: self._held(r) for r in report.residency},
            arriving={a.revision: a.bytes_total for a in report.arriving if a.to_memory},
            to_disk=frozenset(a.revision for a in report.arriving if not a.to_memory),
        )

    def _held(self, residency: Residency) -> Held:
        known = self._published.get(residency.revision)
        # what is reported of a decoded delta counts its merged weights as well, which have a budget of their own
        size = min(residency.bytes, known.bytes) if known else residency.bytes
        return Held(Tier(residency.tier), size, residency.in_use)


def digest_of(placed: Mapping[str, Placed]) -> str:
    """Returns a hash of all targets, whatever their order."""
    targets = sorted((revision, sorted(place.memory), place.disk) for revision, place in placed.items())
    return hashlib.sha256(repr(targets).encode()).hexdigest()[:16]
