"""What a worker tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from deltaserve import metrics
from deltaserve.genai import tier_name
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1.worker_pb2 import LoadSample, StateReport
from services.worker.messages import Totals

_TIERS = (pb.TIER_DISK, pb.TIER_DEVICE, pb.TIER_DECODED)


class State(Protocol):
    """How the worker is; the front knows."""

    def report(self) -> StateReport:
        """Returns what routers hear."""

    def totals(self) -> Totals:
        """Returns the engine's counts; they begin anew with each engine."""

    def disk_evictions(self) -> int:
        """Returns the deltas that left the disk cache."""

    def engine_restarts(self) -> int:
        """Returns how often an engine was replaced."""


class WorkerMetrics:
    """Counts what happens once a request, step or load; the rest is read when Prometheus asks.

    Attributes:
        registry: of everything.
    """

    def __init__(self) -> None:
        self.registry = metrics.registry()
        self._phases = Histogram(
            "deltaserve_worker_phase_seconds", "Time of requests by phase, as their spans tell it",
            ("phase",), buckets=metrics.REQUEST_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._requests = Counter(
            "deltaserve_worker_requests", "Requests that ended, by outcome ('' is success)",
            ("error_type",), registry=self.registry,
        )  # fmt: skip
        self._steps = Histogram(
            "deltaserve_worker_step_seconds", "From the beginning of an engine step to its outputs at the front",
            buckets=metrics.STEP_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._loads = Histogram(
            "deltaserve_worker_load_seconds", "Time that deltas took to memory, by the tier they came from",
            ("source",), buckets=metrics.REQUEST_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._load_bytes = Counter(
            "deltaserve_worker_load_bytes", "Bytes of deltas that were brought to memory, by the tier they came from",
            ("source",), registry=self.registry,
        )  # fmt: skip

    def serve(self, state: State) -> None:
        """From now on tells how the worker is, too."""
        self.registry.register(metrics.Scraped(lambda: _collect(state)))

    def phase(self, name: str, seconds: float) -> None:
        """Counts a phase that a request went through."""
        self._phases.labels(name.replace(" ", "_")).observe(seconds)

    def ended(self, error: str) -> None:
        """Counts a request's end; `error` is empty when it ended well."""
        self._requests.labels(error).inc()

    def step(self, seconds: float) -> None:
        """Counts a step that had outputs."""
        self._steps.observe(seconds)

    def loaded(self, sample: LoadSample) -> None:
        """Counts a delta that came to memory."""
        source = tier_name(sample.source)
        self._loads.labels(source).observe(sample.time.ToNanoseconds() / 1e9)
        self._load_bytes.labels(source).inc(sample.bytes)


def _collect(state: State) -> Iterable[Metric]:
    report = state.report()
    yield metrics.gauge("deltaserve_worker_requests_running", "Sequences in the engine's steps", report.running)
    yield metrics.gauge("deltaserve_worker_requests_waiting", "Requests and sequences that wait", report.waiting)
    blocks = {"total": report.kv_blocks_total, "free": report.kv_blocks_free}
    yield metrics.gauge("deltaserve_worker_kv_blocks", "Blocks of the KV cache", blocks, "state")
    yield metrics.gauge("deltaserve_worker_draining", "Whether the worker takes nothing new", report.draining)
    yield from _residency(report)
    totals = state.totals()
    counts = {"prefill": totals.prefill_tokens, "decode": totals.decode_tokens}
    yield metrics.counter("deltaserve_worker_step_rows", "Rows that steps computed, by kind", counts, "kind")
    yield metrics.counter("deltaserve_worker_steps", "Steps that computed something", totals.steps)
    yield metrics.counter("deltaserve_worker_delta_rows", "Rows that a delta was applied to", totals.delta_rows)
    text = "Distinct deltas of a step, added up over steps"
    yield metrics.counter("deltaserve_worker_delta_groups", text, totals.delta_groups)
    text = "Sequences that lost their KV blocks to others"
    yield metrics.counter("deltaserve_worker_preemptions", text, totals.preempted)
    text = "Turns that a delta gave up for one that others had passed for too long"
    yield metrics.counter("deltaserve_worker_turns_given_up", text, totals.gave_way)
    evicted = {"disk": state.disk_evictions(), "device": totals.evicted}
    yield metrics.counter("deltaserve_worker_evictions", "Deltas that left a tier", evicted, "tier")
    text = "Engines that were replaced"
    yield metrics.counter("deltaserve_worker_engine_restarts", text, state.engine_restarts())


def _residency(report: StateReport) -> Iterable[Metric]:
    """Counts and bytes by tier; and which deltas are in memory, of which there are never many."""
    count, size = ({tier_name(tier): 0.0 for tier in _TIERS} for _ in range(2))
    resident = GaugeMetricFamily(
        "deltaserve_worker_delta_resident", "Sequences that use a delta in memory", labels=["revision", "tier"]
    )
    for entry in report.residency:
        tier = tier_name(entry.tier)
        count[tier] += 1
        size[tier] += entry.bytes
        if entry.tier != pb.TIER_DISK:
            resident.add_metric([entry.revision, tier], entry.in_use)
    yield metrics.gauge("deltaserve_worker_deltas", "Deltas by the hottest tier they are in", count, "tier")
    yield metrics.gauge("deltaserve_worker_delta_bytes", "Bytes of these deltas", size, "tier")
    budget = {"device": float(report.delta_bytes_budget), "disk": float(report.disk_bytes_budget)}
    yield metrics.gauge("deltaserve_worker_delta_bytes_budget", "Bytes that deltas may take", budget, "tier")
    used = {"device": float(report.delta_bytes_used), "disk": float(report.disk_bytes_used)}
    yield metrics.gauge("deltaserve_worker_delta_bytes_used", "Bytes they take, those on their way too", used, "tier")
    yield metrics.gauge("deltaserve_worker_deltas_arriving", "Deltas on their way", len(report.arriving))
    yield resident
