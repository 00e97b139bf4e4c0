"""What routers hear about a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2
from deltaserve.v1.worker_pb2 import StateReport
from services.worker.messages import Ready, Stats


@dataclass(frozen=True, slots=True)
class Transfers:
    """Deltas on their way and what their ways take.

    Attributes:
        arriving: deltas on their way.
        loads: the last loads that were measured.
        disk_budget: bytes that deltas may take in the disk cache.
        disk_used: bytes that they take.
    """

    arriving: Sequence[worker_pb2.Arriving]
    loads: Sequence[worker_pb2.LoadSample]
    disk_budget: int
    disk_used: int


def state_report(
    *,
    ready: Ready | None,
    stats: Stats | None,
    unsent: int,
    residency: Sequence[pb.Residency],
    arrivals: Mapping[str, int],
    draining: bool,
    transfers: Transfers,
    service_seconds: float | None,
) -> StateReport:
    """Returns the report.

    Args:
        ready: of the engine; None while there is none.
        stats: the engine's last; None before the first.
        unsent: requests that the engine does not have yet; they count as waiting.
        residency: every delta above the store.
        arrivals: requests by revision since the worker started.
        draining: whether the worker takes nothing new.
        transfers: what is on its way.
        service_seconds: mean time that a request is computed for; None while none has ended.
    """
    report = StateReport(
        waiting=unsent,
        residency=residency,
        arrivals=dict(arrivals),
        draining=draining,
        step_time=Duration(),
        arriving=transfers.arriving,
        loads=transfers.loads,
        disk_bytes_budget=transfers.disk_budget,
        disk_bytes_used=transfers.disk_used,
    )
    if service_seconds is not None:
        report.service_time.FromNanoseconds(int(service_seconds * 1e9))
    if ready is not None:
        report.kv_blocks_total = report.kv_blocks_free = ready.kv_blocks
        report.delta_bytes_budget = ready.delta_bytes_budget
    if stats is not None:
        report.running = stats.running
        report.waiting += stats.waiting
        report.kv_blocks_free = stats.kv_blocks_free
        report.delta_bytes_used = stats.delta_bytes_used
        report.step_time.FromNanoseconds(int(stats.step_seconds * 1e9))
        if stats.prefix_token_seconds:
            report.prefix_token_time.FromNanoseconds(int(stats.prefix_token_seconds * 1e9))
    return report
