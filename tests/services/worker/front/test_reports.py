"""What the engine measured reaches routers."""

from __future__ import annotations

from services.worker.front.reports import Transfers, state_report
from services.worker.messages import Stats


def report_of(prefix_token_seconds: float):
    stats = Stats(
        running=2, waiting=1, kv_blocks_free=9, delta_bytes_used=77, step_seconds=0.02,
        prefix_token_seconds=prefix_token_seconds, deltas=[],
    )  # fmt: skip
    return state_report(
        ready=None, stats=stats, unsent=3, residency=[], arrivals={}, draining=False,
        transfers=Transfers([], [], 10, 5), service_seconds=None,
    )  # fmt: skip


def test_what_a_cached_token_saves_is_told_in_nanoseconds():
    report = report_of(0.000123)
    assert report.prefix_token_time.ToNanoseconds() == 123_000
    assert (report.running, report.waiting, report.step_time.ToNanoseconds()) == (2, 4, 20_000_000)


def test_without_a_prefix_cache_nothing_is_told():
    assert not report_of(0.0).HasField("prefix_token_time")
