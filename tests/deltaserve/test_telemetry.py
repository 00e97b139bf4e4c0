import asyncio
import random
import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deltaserve import telemetry
from deltaserve.errors import DrainingError


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def test_a_child_finds_its_parent_by_traceparent(spans: InMemorySpanExporter) -> None:
    with telemetry.span("outer") as outer, telemetry.span("inner", parent=telemetry.traceparent(outer)):
        assert not trace.get_current_span().get_span_context().is_valid
    inner, outer_done = spans.get_finished_spans()
    assert inner.parent is not None
    assert outer_done.context is not None
    assert inner.parent.span_id == outer_done.context.span_id


@pytest.mark.parametrize(("error", "kind"), [(DrainingError("x"), "DRAINING"), (asyncio.CancelledError(), "CANCELLED")])
def test_failure_and_cancellation_end_the_span_as_an_error(
    spans: InMemorySpanExporter, error: BaseException, kind: str
) -> None:
    with pytest.raises(type(error)), telemetry.span("x"):
        raise error
    (done,) = spans.get_finished_spans()
    assert done.status.status_code is trace.StatusCode.ERROR
    assert done.attributes is not None
    assert done.attributes["error.type"] == kind


def test_without_set_up_nothing_is_traced() -> None:
    with telemetry.span("x") as span:
        assert telemetry.traceparent(span) == ""


def test_a_deadline_is_told_from_a_cancellation(spans: InMemorySpanExporter) -> None:
    for passed in (True, False):
        with pytest.raises(asyncio.CancelledError), telemetry.span("x", expired=lambda: passed):  # noqa: B023 - at once
            raise asyncio.CancelledError
    kinds = [dict(done.attributes or {})["error.type"] for done in spans.get_finished_spans()]
    assert kinds == ["DEADLINE_EXCEEDED", "CANCELLED"]


def test_what_is_over_gets_the_times_it_had(spans: InMemorySpanExporter) -> None:
    ended = time.monotonic() - random.uniform(0, 100)
    seconds = random.uniform(0, 50)
    with telemetry.span("outer") as outer:
        telemetry.record("inner", outer, ended - seconds, ended, {"a": 1})
        telemetry.record("failed", outer, ended - seconds, ended, error="STORE")
        telemetry.record("backwards", outer, ended, ended - seconds)
    inner, failed, done = spans.get_finished_spans()
    assert inner.parent is not None
    assert inner.parent.span_id == outer.get_span_context().span_id
    assert inner.start_time is not None
    assert inner.end_time is not None
    assert (inner.end_time - inner.start_time) / 1e9 == pytest.approx(seconds, abs=1e-6)
    assert done.end_time is not None
    assert (done.end_time - inner.end_time) / 1e9 == pytest.approx(time.monotonic() - ended, abs=1)
    assert dict(failed.attributes or {}) == {"error.type": "STORE"}


def test_nothing_is_recorded_below_what_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=telemetry.sampler(0.0))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    with telemetry.span("outer") as outer:
        assert int(telemetry.traceparent(outer)[-2:], 16) & 1 == 0
        telemetry.record("inner", outer, 0.0, 1.0)
    kept = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with telemetry.span("of a caller who keeps it", parent=kept):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["of a caller who keeps it"]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_are_shares(share: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        telemetry.sampler(share)
