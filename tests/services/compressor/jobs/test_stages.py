import random

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deltaserve import telemetry
from deltaserve.errors import FormatError
from services.compressor.jobs.records import Progress
from services.compressor.jobs.stages import followed
from services.compressor.metrics import CompressorMetrics


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return spans


def _layers(total: int, attempt: int) -> list[Progress]:
    return [
        Progress(stage="compressing", attempt=attempt, layers_done=done, layers_total=total, bytes_out=done)
        for done in range(total + 1)
    ]


def _groups(spans: list[ReadableSpan]) -> list[tuple[int, int]]:
    attributes = [dict(span.attributes or {}) for span in spans if span.name.startswith("layer")]
    return [(int(str(a["deltaserve.layers.first"])), int(str(a["deltaserve.layers.last"]))) for a in attributes]


@pytest.mark.parametrize("total", [1, 16, 17, random.randrange(18, 130)])
def test_groups_cover_every_layer_of_every_attempt_once(exporter: InMemorySpanExporter, total: int) -> None:
    metrics = CompressorMetrics()
    with telemetry.span("job") as job, followed(job, metrics) as stages:
        for progress in [Progress(), *_layers(total, 1), Progress(stage="evaluating", attempt=1), *_layers(total, 2)]:
            stages.progressed(progress)
    spans = list(exporter.get_finished_spans())
    stage_names = [s.name for s in spans if not s.name.startswith("layer")]
    assert stage_names == ["preparing", "compressing", "evaluating", "compressing", "job"]
    groups = _groups(spans)
    assert [layer for first, last in groups for layer in range(first, last + 1)] == [*range(total), *range(total)]
    assert len(groups) <= 2 * 16
    assert metrics.registry.get_sample_value("deltaserve_compressor_layers_total") == 2 * total
    name = "deltaserve_compressor_stage_seconds_count"
    assert metrics.registry.get_sample_value(name, {"stage": "compressing"}) == 2


def test_what_is_open_when_a_job_fails_has_failed(exporter: InMemorySpanExporter) -> None:
    metrics = CompressorMetrics()
    with pytest.raises(FormatError), telemetry.span("job") as job, followed(job, metrics) as stages:
        for progress in _layers(8, 1)[:4]:
            stages.progressed(progress)
        raise FormatError("x")
    ended = {span.name: dict(span.attributes or {}).get("error.type") for span in exporter.get_finished_spans()}
    wanted = dict.fromkeys(("layer 0", "layer 1", "layer 2"))
    assert ended == wanted | dict.fromkeys(("layer 3", "compressing", "job"), "MALFORMED_FILE")
    name = "deltaserve_compressor_stage_seconds_count"
    assert metrics.registry.get_sample_value(name, {"stage": "compressing"}) is None
