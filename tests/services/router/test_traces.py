"""Spans of requests, received in memory through the SDK's own exporter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from deltaserve import genai
from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb

from .conftest import BASE_NAME, ScriptedWorker, connected, failure, publish, rest, routing, serve, until

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)  # a process has one, set once
    yield spans
    provider.shutdown()


def _requests(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]


async def test_a_request_is_a_span_below_its_clients_and_above_its_workers(
    store: str, worker: ScriptedWorker, exporter: InMemorySpanExporter
) -> None:
    name = await publish(store, "m")
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        request = pb.GenerateRequest(model="m", text="a b", client_request_id="req")
        parent = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)
        await rest(client.inference.Generate(request, metadata=parent))
        await until(lambda: len(exporter.get_finished_spans()) == 3)
    resolve, queue, span = exporter.get_finished_spans()
    assert span.context is not None
    for child, child_name in ((resolve, "resolve"), (queue, "queue")):
        assert child.name == child_name
        assert child.parent is not None
        assert child.parent.span_id == span.context.span_id
    assert dict(queue.attributes or {}) == {
        genai.WORKER: "w0", genai.TIER: "store", genai.ATTEMPT: 1, genai.WAITING: 1
    }  # fmt: skip
    assert (span.name, span.kind, span.status.status_code) == ("text_completion m", SpanKind.SERVER, StatusCode.UNSET)
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert worker.submits[0].traceparent == f"00-{TRACE}-{span.context.span_id:016x}-01"
    expected = {
        genai.REQUEST_MODEL: "m",
        genai.RESPONSE_ID: "req",
        genai.REVISION: name,
        genai.WORKER: "w0",
        genai.INPUT_TOKENS: 3,
        genai.OUTPUT_TOKENS: 2,
    }
    assert expected.items() <= dict(span.attributes or {}).items()
    assert [event.name for event in span.events] == ["submitted"]


async def test_failed_and_cancelled_requests_are_errors(
    store: str, worker: ScriptedWorker, exporter: InMemorySpanExporter
) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        if submit.request.text == "bad":
            worker.emit(submit.request_id, error=InvalidArgumentError("no"))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        await failure(client.generate("bad", model=BASE_NAME))
        call = client.generate("hangs")
        await call.read()
        call.cancel()
        await client.inference.Generate(pb.GenerateRequest(model="m")).code()
        await until(lambda: len(_requests(exporter)) == 3)
    failed, cancelled, refused = _requests(exporter)
    assert dict(refused.attributes or {})[genai.ERROR_TYPE] == "INVALID_ARGUMENT"
    assert failed.status.status_code is cancelled.status.status_code is StatusCode.ERROR
    assert dict(failed.attributes or {})[genai.ERROR_TYPE] == "INVALID_ARGUMENT"
    assert dict(cancelled.attributes or {})[genai.ERROR_TYPE] == "CANCELLED"
