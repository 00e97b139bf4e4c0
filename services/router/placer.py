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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deltaserve.catalog import ModelRecord
from deltaserve.names import RevisionName
from deltaserve.v1.inference_pb2 import Residency
from deltaserve.v1.inference_pb2 import Tier as TierValue
from services.router.costs import LoadCosts, LoadSample, Tier
from services.router.feed import Feed
from services.router.fleet import Fleet
from services.router.forecasts import Forecast, Forecasts
from services.router.link import WorkerLink
from services.router.placement import decide
from services.router.plan import Decision, Demand, Held, Order, Placed, WorkerState
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


class Placer:
    """Holds rounds.

    Attributes:
        last: the last round.
        orders: the last orders with their time, newest first.
    """

    def __init__(self, settings: RouterSettings, fleet: Fleet) -> None:
        self.last = Round()
        self.orders: deque[tuple[float, Order]] = deque(maxlen=_KEPT_ORDERS)
        self._settings = settings
        self._rules = settings.placement_rules()
        self._fleet = fleet
        self._feed = Feed()
        self._forecasts: Forecasts | None = None
        self._published: dict[str, Published] = {}
        self._busy = asyncio.Lock()

    @property
    def horizon(self) -> float:
        """Seconds that placement looks ahead."""
        return self._settings.prefetch_seconds

    def published(self, records: Iterable[ModelRecord]) -> None:
        """Takes what the store publishes now."""
        found: dict[str, Published] = {}
        for record in records:
            manifest, names = record.manifest, [str(RevisionName(record.name, r)) for r in record.revisions]
            for name in names:
                newest = name == names[-1]
                former = names[-2] if newest and len(names) > 1 else ""
                size, base = manifest.sizes.delta_bytes, manifest.base.fingerprint
                found[name] = Published(size, base, record.pinned and newest, former)
        self._published = found

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
            links = [link for link in self._fleet.links() if link.connected and link.welcome is not None]
            for link in links:
                while link.arrivals:
                    news = link.arrivals.popleft().revisions
                    self._feed.take(link.name, ((ms, entry.revision) for entry in news for ms in entry.unix_ms))
            serving = [link for link in links if link.serving]
            fleets: dict[str, list[WorkerState]] = {}
            for link in serving:
                fleets.setdefault(link.welcome.base_fingerprint if link.welcome else "", []).append(self._state(link))
            samples = [s for link in serving for s in _samples(link)]
            begin = time.perf_counter()
            decisions = await asyncio.to_thread(self._decide, now, fleets, samples)
            self._note(now, time.perf_counter() - begin, decisions)
            self._send(now, serving, fleets, decisions)

    async def next_request(self, revision: str) -> float | None:
        """Returns the median time until a revision's next request, from the last round on; None: over a day."""
        async with self._busy:
            return self._forecasts.next_seconds(revision, self.last.at) if self._forecasts else None

    def _decide(
        self, now: float, fleets: Mapping[str, list[WorkerState]], samples: Iterable[LoadSample]
    ) -> dict[str, Decision]:
        arrived = self._feed.settled(now)
        if self._forecasts is None:
            self._forecasts = Forecasts(arrived[0][0] if arrived else now)
        for at, revision in arrived:
            self._forecasts.arrived(revision, at)
        demands = self._demands(now, self._forecasts)
        costs = LoadCosts().measured(samples)
        return {base: decide(demands.get(base, ()), workers, self._rules, costs) for base, workers in fleets.items()}

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

    def _note(self, now: float, seconds: float, decisions: Mapping[str, Decision]) -> None:
        placed = {revision: place for decision in decisions.values() for revision, place in decision.placed.items()}
        targets = sorted((revision, sorted(place.memory), place.disk) for revision, place in placed.items())
        digest = hashlib.sha256(repr(targets).encode()).hexdigest()[:16]
        known = self._forecasts or Forecasts(now)
        forecasts = {name: known.forecast(name, now, self._settings.prefetch_seconds) for name in placed}
        self.last = Round(now, seconds, placed, forecasts, digest)

    def _send(
        self,
        now: float,
        links: Iterable[WorkerLink],
        fleets: Mapping[str, list[WorkerState]],
        decisions: Mapping[str, Decision],
    ) -> None:
        by_name = {link.name: link for link in links}
        for base, decision in decisions.items():
            for order in decision.orders:
                log.info("worker %s: %s to %s, %s", order.worker, order.revision, order.tier.name, order.reason)
                by_name[order.worker].place(order.revision, TierValue.ValueType(order.tier))
                self.orders.appendleft((now, order))
            for worker in fleets[base]:
                if worths := decision.worths(worker):
                    by_name[worker.name].rank(worths)

    def _state(self, link: WorkerLink) -> WorkerState:
        report, view = link.report, link.view()
        return WorkerState(
            name=link.name,
            budget=report.delta_bytes_budget,
            disk_free=max(0, report.disk_bytes_budget - report.disk_bytes_used),
            places=max(view.max_running, 1),
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


def _samples(link: WorkerLink) -> list[LoadSample]:
    return [LoadSample(Tier(s.source), s.bytes, s.time.ToNanoseconds() / 1e9) for s in link.report.loads]
