"""A collector of traces: the official OTLP servicer, which keeps what it receives."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(eq=False)
class Received:
    """A span, and the service that sent it."""

    service: str
    message: Message
    children: list["Received"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.message.name

    @property
    def trace(self) -> str:
        return self.message.trace_id.hex()

    @property
    def attributes(self) -> dict[str, object]:
        return _attributes(self.message.attributes)

    @property
    def error(self) -> object:
        """The error type of a failed span, None of any other."""
        failed = self.message.status.code == Status.STATUS_CODE_ERROR
        assert failed == ("error.type" in self.attributes), self
        return self.attributes.get("error.type")

    def child(self, name: str) -> "Received":
        found = [child for child in self.children if child.name == name]
        assert len(found) == 1, (
            f"{self.name} has the children {[child.name for child in self.children]}, not one {name}"
        )
        return found[0]

    def walk(self) -> Iterator["Received"]:
        yield self
        for child in self.children:
            yield from child.walk()


class Collector(rpc.TraceServiceServicer):
    """Keeps all spans. `expect` returns the tree of a trace once it is whole."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.endpoint = ""
        self._server = grpc.aio.server()
        rpc.add_TraceServiceServicer_to_server(self, self._server)

    async def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = str(_attributes(resource.resource.attributes)["service.name"])
            for scope in resource.scope_spans:
                self.spans += [Received(service, message) for message in scope.spans]
        return pb.ExportTraceServiceResponse()

    async def __aenter__(self) -> "Collector":
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def expect(self, trace: str, whole: Callable[[Received], bool], seconds: float = 30.0) -> Received:
        """Returns the root of a trace as soon as `whole` holds for it and no parent is missing."""
        root: Received | None = None
        async with asyncio.timeout(seconds):
            while True:
                root = self._root(trace)
                if root is not None and whole(root):
                    return root
                await asyncio.sleep(0.05)

    def _root(self, trace: str) -> Received | None:
        """Returns the only span without a parent that was received, with all others below it."""
        spans = {span.message.span_id: span for span in self.spans if span.trace == trace}
        for span in spans.values():
            span.children = []
        roots = []
        for span in sorted(spans.values(), key=_times):
            parent = spans.get(span.message.parent_span_id)
            (roots if parent is None else parent.children).append(span)
        return roots[0] if len(roots) == 1 else None


def _times(span: Received) -> tuple[int, int]:
    return span.message.start_time_unix_nano, span.message.end_time_unix_nano


def _attributes(pairs: "list[KeyValue] | object") -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}  # type: ignore[attr-defined]


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(v) for v in value.array_value.values]
    return getattr(value, str(kind))
