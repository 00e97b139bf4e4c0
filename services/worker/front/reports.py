"""What routers hear about a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.duration_pb2 import Duration

from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1.worker_pb2 import StateReport
from services.worker.messages import Ready, Stats


def state_report(
    *,
    ready: Ready | None,
    stats: Stats | None,
    unsent: int,
    residency: Sequence[pb.Residency],
    arrivals: Mapping[str, int],
    draining: bool,
) -> StateReport:
    """Returns the report.

    Args:
        ready: of the engine; None while there is none.
        stats: the engine's last; None before the first.
        unsent: requests that the engine does not have yet; they count as waiting.
        residency: every delta above the store.
        arrivals: requests by revision since the worker started.
        draining: whether the worker takes nothing new.
    """
    report = StateReport(
        waiting=unsent, residency=residency, arrivals=dict(arrivals), draining=draining, step_time=Duration()
    )
    if ready is not None:
        report.kv_blocks_total = report.kv_blocks_free = ready.kv_blocks
        report.delta_bytes_budget = ready.delta_bytes_budget
    if stats is not None:
        report.running = stats.running
        report.waiting += stats.waiting
        report.kv_blocks_free = stats.kv_blocks_free
        report.delta_bytes_used = stats.delta_bytes_used
        report.step_time.FromNanoseconds(int(stats.step_seconds * 1e9))
    return report
