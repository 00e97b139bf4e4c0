"""One trace from a client through router, worker and compressor, received by the official OTLP servicer."""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from deltaserve.client.generation import Completion
from deltaserve.errors import DeadlineError, InvalidArgumentError, NotFoundError
from deltaserve.v1 import models_pb2
from tests.e2e.collector import Received
from tests.e2e.conftest import MODELS, Observed, prompts

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

Alter = Callable[[Callable[[dict[str, torch.Tensor]], object]], Path]
PHASES = ["prepare", "delta fetch", "delta decode", "queue", "prefill", "decode"]
CLOCK_NS = 5_000_000  # clocks of processes are read one after the other


@pytest.fixture
def application(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """An application that has set up OpenTelemetry, as far as that can be done more than once in a process."""
    provider = TracerProvider(resource=Resource.create({"service.name": "application"}))
    exporter = OTLPSpanExporter(endpoint=observed.collector.endpoint, insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=100))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield provider
    provider.shutdown()


def _is_served(root: Received) -> bool:
    """Whether the worker's part has come, which comes when it likes."""
    return any(span.name.startswith("serve ") for span in root.walk()) and not root.name.startswith("serve ")


async def _request_of(observed: Observed, root: trace.Span) -> Received:
    """Returns the client's span of the only request below `root`."""
    root.end()
    top = await observed.collector.expect(f"{root.get_span_context().trace_id:032x}", _is_served)
    (client,) = top.children
    return client


def _begin(application: TracerProvider) -> trace.Span:
    return application.get_tracer("test").start_span("application")


async def _cold(observed: Observed, application: TracerProvider) -> tuple[str, Completion, Received]:
    """Returns a model that nothing had been loaded of, what a request to it gave, and the client's span.

    Placement brings new models near by itself every other second, and may be first.
    """
    for _ in range(5):
        prompt, model = prompts("g2p", 1)[0], await observed.publish("g2p")
        root = _begin(application)
        with trace.use_span(root):
            done = await observed.client.complete(model, prompt, max_tokens=6, ignore_eos=True, temperature=0.0, seed=7)
        client = await _request_of(observed, root)
        names = [span.name for span in client.walk()]
        if names.count("delta fetch") == 1:
            return model, done, client
    raise AssertionError(f"no request was cold; the last one's spans are {names}")


async def test_a_cold_request_is_one_trace(observed: Observed, application: TracerProvider) -> None:
    model, done, client = await _cold(observed, application)
    router = client.child(f"text_completion {model}")
    worker = router.child(f"serve {model}")
    assert [span.service for span in (client, router, worker)] == [
        "application", "deltaserve-router", "deltaserve-worker"
    ]  # fmt: skip
    kinds = [span.message.kind for span in (client, router, worker)]
    assert kinds == [Message.SPAN_KIND_CLIENT, Message.SPAN_KIND_SERVER, Message.SPAN_KIND_INTERNAL]
    assert [child.name for child in router.children] == ["resolve", "queue", f"serve {model}"]
    assert [child.name for child in worker.children] == PHASES
    assert {span.error for span in client.walk()} == {None}
    usage = {
        "gen_ai.usage.input_tokens": done.summary.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 6,
    }
    asked = {
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "deltaserve",
        "gen_ai.request.model": model, "gen_ai.request.max_tokens": 6, "gen_ai.request.temperature": 0.0,
        "gen_ai.request.seed": 7, "gen_ai.response.model": model,
    }  # fmt: skip
    for span in (client, router, worker):
        assert (asked | usage).items() <= span.attributes.items(), span.name
    for span in (client, router):
        assert span.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert router.attributes["deltaserve.worker"] == "worker-1"
    assert router.attributes["deltaserve.revision"] == f"{model}@1"
    assert router.child("queue").attributes["deltaserve.delta.tier"] == "store"
    assert worker.child("delta fetch").attributes["deltaserve.delta.bytes"] > 0  # type: ignore[operator]
    assert worker.child("decode").attributes["gen_ai.usage.output_tokens"] == 6


async def test_children_lie_within_their_parents_one_after_the_other(
    observed: Observed, application: TracerProvider
) -> None:
    model = await observed.publish("section")
    root = _begin(application)
    with trace.use_span(root):
        await observed.client.complete(model, prompts("section", 1)[0], max_tokens=4)
    client = await _request_of(observed, root)
    for parent in client.walk():
        begin, end = parent.message.start_time_unix_nano, parent.message.end_time_unix_nano
        assert begin <= end
        for child in parent.children:
            assert child.message.start_time_unix_nano >= begin - CLOCK_NS, (parent.name, child.name)
            assert child.message.end_time_unix_nano <= end + CLOCK_NS, (parent.name, child.name)
    worker = client.children[0].child(f"serve {model}")
    for one, next_one in zip(worker.children, worker.children[1:], strict=False):
        assert one.message.end_time_unix_nano <= next_one.message.start_time_unix_nano + CLOCK_NS, next_one.name


async def test_a_cancelled_request_says_so_everywhere(observed: Observed, application: TracerProvider) -> None:
    root = _begin(application)
    with trace.use_span(root):
        async with observed.client.generate("base", prompts("base", 1)[0], max_tokens=400, ignore_eos=True) as stream:
            async for _ in stream.text():
                break
    client = await _request_of(observed, root)
    router = client.child("text_completion base")
    worker = router.child("serve base")
    assert [span.error for span in (client, router, worker)] == ["CANCELLED"] * 3
    assert [(span.name, span.error) for span in worker.children] == [
        ("prepare", None), ("queue", None), ("prefill", None), ("decode", "CANCELLED")
    ]  # fmt: skip


async def test_a_deadline_is_not_taken_for_a_cancellation(observed: Observed, application: TracerProvider) -> None:
    root = _begin(application)
    with trace.use_span(root), pytest.raises(DeadlineError):
        await observed.client.complete("base", prompts("base", 1)[0], max_tokens=450, ignore_eos=True, timeout=0.4)
    client = await _request_of(observed, root)
    router = client.child("text_completion base")
    assert [span.error for span in (client, router, router.child("serve base"))] == ["DEADLINE_EXCEEDED"] * 3


async def test_what_the_router_refuses_is_traced_too(observed: Observed, application: TracerProvider) -> None:
    root = _begin(application)
    with trace.use_span(root), pytest.raises(NotFoundError):
        await observed.client.complete("nobody", "x")
    root.end()
    trace_id = f"{root.get_span_context().trace_id:032x}"
    top = await observed.collector.expect(trace_id, lambda top: len(list(top.walk())) == 4)
    client = top.child("text_completion nobody")
    router = client.child("text_completion nobody")
    assert [client.error, router.error, router.child("resolve").error] == ["NOT_FOUND"] * 3


async def test_what_the_worker_refuses_is_traced_too(observed: Observed, application: TracerProvider) -> None:
    root = _begin(application)
    with trace.use_span(root), pytest.raises(InvalidArgumentError):
        await observed.client.complete("base", [10**6], max_tokens=1)
    client = await _request_of(observed, root)
    router = client.child("text_completion base")
    worker = router.child("serve base")
    assert [span.error for span in (client, router, worker, worker.child("prepare"))] == ["INVALID_ARGUMENT"] * 4
    assert router.message.status.message


@pytest.mark.parametrize("sampled", [True, False])
async def test_http_takes_a_trace_and_its_sampling_from_the_header(observed: Observed, sampled: bool) -> None:
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace_id}-{span_id}-{int(sampled):02x}"}
    body = {"model": "base", "prompt": prompts("base", 1)[0], "max_tokens": 2}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"http://{observed.http}/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    if sampled:
        router = await observed.collector.expect(trace_id, _is_served)
        assert router.message.parent_span_id.hex() == span_id
        assert router.attributes["gen_ai.response.id"] == answer.headers["x-request-id"]
    else:
        await asyncio.sleep(1)  # five times as long as spans are kept back
        assert not [span for span in observed.collector.spans if span.trace == trace_id]


async def test_a_compression_goes_on_with_the_trace_of_who_asked(
    observed: Observed, application: TracerProvider
) -> None:
    root = _begin(application)
    with trace.use_span(root):
        job = await observed.client.create_job("traced", str(MODELS / "conj_fr"), codec="int4", calibration_samples=8)
    root.end()
    job = await observed.client.wait_for_job(job.job_id)
    assert job.state == models_pb2.JOB_STATE_SUCCEEDED, job
    trace_id = f"{root.get_span_context().trace_id:032x}"
    top = await observed.collector.expect(
        trace_id, lambda top: any(span.name == "compress traced" for span in top.walk())
    )
    created = top.child("deltaserve.v1.ModelService/CreateJob")
    compress = created.child("compress traced")
    assert {span.service for span in created.walk()} == {"deltaserve-compressor"}
    assert [stage.name for stage in compress.children] == ["preparing", "compressing", "evaluating", "publishing"]
    assert {span.error for span in created.walk()} == {None}
    groups = compress.child("compressing").children
    layers = [layer for group in groups for layer in _layers(group)]
    assert layers == list(range(job.progress.layers_total))
    assert all(group.attributes["deltaserve.bytes_out"] > 0 for group in groups)  # type: ignore[operator]
    assert compress.attributes["deltaserve.job"] == job.job_id


async def test_a_compression_that_is_refused_has_failed(
    observed: Observed, application: TracerProvider, altered: Alter
) -> None:
    folder = altered(lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))
    root = _begin(application)
    with trace.use_span(root):
        job = await observed.client.create_job("broken", str(folder), codec="int4")
    root.end()
    job = await observed.client.wait_for_job(job.job_id)
    assert job.state == models_pb2.JOB_STATE_FAILED
    trace_id = f"{root.get_span_context().trace_id:032x}"
    top = await observed.collector.expect(
        trace_id, lambda top: any(span.name == "compress broken" for span in top.walk())
    )
    (compress,) = [span for span in top.walk() if span.name == "compress broken"]
    assert compress.error
    assert [(stage.name, stage.error) for stage in compress.children] == [("preparing", compress.error)]


def _layers(group: Received) -> range:
    first, last = group.attributes["deltaserve.layers.first"], group.attributes["deltaserve.layers.last"]
    assert isinstance(first, int)
    assert isinstance(last, int)
    return range(first, last + 1)
