import asyncio

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
