"""Traces through OpenTelemetry: set-up, one way to open a span, and the names used in it.

Spans are never made current: a handler that yields would leak the context to whoever runs next. Parents are passed by
hand as W3C traceparent strings, which is also how they cross the Session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from deltaserve.errors import DeltaServeError

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"
WORKER = "deltaserve.worker"
REVISION = "deltaserve.revision"

_propagator = TraceContextTextMapPropagator()


def setup(service: str, endpoint: str | None) -> None:
    """Exports this process's spans over OTLP gRPC to `endpoint` (host:port); None: they go nowhere."""
    if endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({"service.name": f"deltaserve-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
    trace.set_tracer_provider(provider)


def shutdown() -> None:
    """Sends what is left."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


@contextlib.contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """Opens a span that ends with the block, its status from how the block ends: cancellation is an error too.

    Args:
        name: `{operation} {model}` for requests, by the GenAI conventions.
        kind: SERVER for what a client called, INTERNAL otherwise.
        parent: traceparent of the parent; None begins a trace.
        attributes: named by the constants of this module.
    """
    context = _propagator.extract({"traceparent": parent}) if parent else None
    started = trace.get_tracer("deltaserve").start_span(name, context, kind, attributes)
    try:
        yield started
    except BaseException as error:
        started.set_attribute(ERROR_TYPE, error.reason if isinstance(error, DeltaServeError) else type(error).__name__)
        started.set_status(Status(StatusCode.ERROR, str(error)))
        raise
    finally:
        started.end()


def traceparent(of: Span) -> str:
    """Returns the W3C traceparent of a span; empty when tracing is off."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(of))
    return carrier.get("traceparent", "")
