"""Spans of calls over a real socket."""

from collections.abc import AsyncIterator

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from deltaserve.errors import NotFoundError
from deltaserve.rpc import tracing
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.servers import serving
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import inference_pb2_grpc as rpc

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Servicer(rpc.InferenceServiceServicer):
    """Answers with the trace that a call of another service would go on with."""

    async def Tokenize(self, request: pb.TokenizeRequest, context: object) -> pb.TokenizeResponse:
        if request.model == "missing":
            raise NotFoundError("no", kind="model", name="missing")
        return pb.TokenizeResponse(pieces=[value for _, value in tracing.metadata()])

    async def Generate(self, request: pb.GenerateRequest, context: object) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(accepted=pb.Accepted(request_id="".join(v for _, v in tracing.metadata())))


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
async def stub() -> AsyncIterator[rpc.InferenceServiceStub]:
    def register(server: grpc.aio.Server) -> None:
        rpc.add_InferenceServiceServicer_to_server(Servicer(), server)

    async with (
        serving("127.0.0.1:0", register, ["deltaserve.v1.InferenceService"]) as host,
        edge_channel(f"127.0.0.1:{host.port}") as channel,
    ):
        yield rpc.InferenceServiceStub(channel)


async def test_a_call_is_a_span_below_its_callers(spans: InMemorySpanExporter, stub: rpc.InferenceServiceStub) -> None:
    answer = await stub.Tokenize(pb.TokenizeRequest(), metadata=(("traceparent", PARENT),))
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("deltaserve.v1.InferenceService/Tokenize", SpanKind.SERVER)
    assert span.parent is not None
    assert span.context is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert list(answer.pieces) == [f"{PARENT[:36]}{span.context.span_id:016x}-01"]


async def test_its_status_is_the_errors(spans: InMemorySpanExporter, stub: rpc.InferenceServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Tokenize(pb.TokenizeRequest(model="missing"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "NOT_FOUND"


async def test_streams_are_left_to_their_handlers(spans: InMemorySpanExporter, stub: rpc.InferenceServiceStub) -> None:
    async for frame in stub.Generate(pb.GenerateRequest(), metadata=(("traceparent", PARENT),)):
        assert frame.accepted.request_id == ""
    assert not spans.get_finished_spans()
