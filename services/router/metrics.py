"""What the router tells Prometheus. Labels are bounded: models are told by class, and by name only the busiest."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from prometheus_client import Counter as Counted
from prometheus_client import Histogram
from prometheus_client.core import Metric

from deltaserve import metrics
from deltaserve.genai import operation, tier_name
from deltaserve.v1.inference_pb2 import GenerateRequest, Summary
from deltaserve.v1.inference_pb2 import Tier as TierValue
from services.router.costs import Tier
from services.router.fleet import Fleet
from services.router.link import WorkerLink
from services.router.rates import RateBook

_NAMED_MODELS = 50  # that a rate is told of; the rest are added up as "other"
_OTHER = "other"
_REQUEST = ("gen_ai_operation_name", "model_class")


class Waiting(Protocol):
    """Who knows how many requests wait; the dispatcher does."""

    @property
    def waiting(self) -> int:
        """Requests that wait here."""


class RouterMetrics:
    """Counts requests as they end, and on the way only what cannot be told afterwards.

    Attributes:
        registry: of everything.
    """

    def __init__(self) -> None:
        self.registry = metrics.registry()
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds", "From arrival to the last frame, by outcome ('' is success)",
            (*_REQUEST, "error_type"), buckets=metrics.REQUEST_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._first = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "From arrival to the first token",
            _REQUEST, buckets=metrics.REQUEST_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._token = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Mean time between a request's tokens after the first",
            _REQUEST, buckets=metrics.STEP_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._tokens = Counted(
            "deltaserve_router_tokens", "Tokens of requests that ended well, by kind: input or output",
            ("kind", "model_class"), registry=self.registry,
        )  # fmt: skip
        self._wait = Histogram(
            "deltaserve_router_queue_wait_seconds", "Time that requests waited here for a worker",
            buckets=(0.0001, *metrics.REQUEST_BUCKETS), registry=self.registry,
        )  # fmt: skip
        self._submits = Counted(
            "deltaserve_router_submits", "Requests sent to a worker, by where their delta was there",
            ("tier",), registry=self.registry,
        )  # fmt: skip
        self._failovers = Counted(
            "deltaserve_router_failovers", "Requests that left a worker: 'again' for another, or 'failed'",
            ("outcome",), registry=self.registry,
        )  # fmt: skip
        self._orders = Counted(
            "deltaserve_router_placement_orders", "Orders of placement, by the tier that a delta is to come to",
            ("tier",), registry=self.registry,
        )  # fmt: skip
        self._hits = Counted(
            "deltaserve_router_prefetch_hits",
            "Deltas that placement had brought to memory when the next request came", registry=self.registry,
        )  # fmt: skip
        self._prefetched: set[tuple[str, str]] = set()  # worker and revision, until a request or another order comes

    def serve(self, fleet: Fleet, rates: RateBook, waiting: Waiting) -> None:
        """From now on tells of these too."""
        state = _State(fleet, rates, waiting)
        self.registry.register(metrics.Scraped(state.collect))

    def ended(self, request: GenerateRequest, model_class: str, seconds: float, error: str) -> None:
        """Counts a request's end; `error` is empty when it ended well."""
        self._duration.labels(operation(request), model_class, error).observe(seconds)

    def summed_up(self, request: GenerateRequest, model_class: str, summary: Summary) -> None:
        """Takes a worker's last frame of a request."""
        labels = operation(request), model_class
        timings, usage = summary.timings, summary.usage
        self._first.labels(*labels).observe(timings.time_to_first_token.ToNanoseconds() / 1e9)
        if usage.completion_tokens > 1:
            self._token.labels(*labels).observe(timings.inter_token.ToNanoseconds() / 1e9)
        self._tokens.labels("input", model_class).inc(usage.prompt_tokens)
        self._tokens.labels("output", model_class).inc(usage.completion_tokens)

    def submitted(self, worker: str, revision: str, tier: Tier, waited: float) -> None:
        """Counts a request that goes to a worker after so many seconds here."""
        self._wait.observe(max(0.0, waited))
        self._submits.labels(_tier(tier) if revision else "base").inc()
        if (worker, revision) in self._prefetched:
            self._prefetched.discard((worker, revision))
            if tier >= Tier.DEVICE:
                self._hits.inc()

    def left_worker(self, outcome: str) -> None:
        """Counts a request that a worker lost or refused."""
        self._failovers.labels(outcome).inc()

    def ordered(self, worker: str, revision: str, tier: Tier) -> None:
        """Counts an order of placement."""
        self._orders.labels(_tier(tier)).inc()
        (self._prefetched.add if tier == Tier.DEVICE else self._prefetched.discard)((worker, revision))


class _State:
    """How the router is when it is asked."""

    def __init__(self, fleet: Fleet, rates: RateBook, waiting: Waiting) -> None:
        self._fleet, self._rates, self._waiting = fleet, rates, waiting

    def collect(self) -> Iterable[Metric]:
        now = asyncio.get_running_loop().time()
        links = self._fleet.links()
        running = sum(len(link.flights) for link in links)
        yield metrics.gauge("deltaserve_router_queue_depth", "Requests that wait here", self._waiting.waiting)
        yield metrics.gauge("deltaserve_router_requests_running", "Requests that are on a worker", running)
        states = Counter(worker_state(link) for link in links)
        every = {state: float(states[state]) for state in ("serving", "draining", "lost")}
        yield metrics.gauge("deltaserve_router_workers", "Workers by state", every, "state")
        up = {link.name: float(link.connected) for link in links}
        yield metrics.gauge("deltaserve_router_worker_up", "Whether there is a session with the worker", up, "worker")
        rates = busiest(self._rates.all_rates(now), _NAMED_MODELS)
        text = f"Requests a second, over ten seconds; the {_NAMED_MODELS} busiest models, all others as '{_OTHER}'"
        yield metrics.gauge("deltaserve_router_arrival_rate", text, rates, "model")


def worker_state(link: WorkerLink) -> str:
    """Returns serving, draining (also: refusing for a moment) or lost."""
    return "serving" if link.serving else "draining" if link.connected else "lost"


def busiest(rates: dict[str, float], count: int) -> dict[str, float]:
    """Returns the `count` highest rates by model, and the sum of all others."""
    ranked = sorted(rates.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(rate for _, rate in ranked[count:])
    return dict(ranked[:count]) | ({_OTHER: rest} if len(ranked) > count else {})


def _tier(tier: Tier) -> str:
    return tier_name(TierValue.ValueType(int(tier)))
