"""Traces through OpenTelemetry: set-up, and the ways to make a span. The names used in it are in `genai`.

Spans are never made current: a handler that yields would leak the context to whoever runs next. Parents are passed by
hand, between processes as W3C traceparent strings, which is also how they cross the Session. What a log record belongs
to is known all the same (`logged`).

Most spans are made after the fact (`record`) from times that are taken anyway: without a collector nothing but a
comparison is left of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from deltaserve.errors import DeltaServeError
from deltaserve.genai import ERROR_TYPE

CANCELLED, DEADLINE = "CANCELLED", "DEADLINE_EXCEEDED"

_propagator = TraceContextTextMapPropagator()
_logged: ContextVar[Span] = ContextVar("logged", default=INVALID_SPAN)

Attributes = Mapping[str, AttributeValue]


def setup(service: str, endpoint: str | None, share: float | None = None, instance: str = "") -> None:
    """Exports this process's spans over OTLP gRPC.

    Args:
        service: of `service.name`.
        endpoint: host:port of a collector, without TLS; None: where OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere.
        share: of the traces that begin here, 0 to 1, that are kept; None: as OTEL_TRACES_SAMPLER says, else all. What
            a caller decided about its trace holds here too.
        instance: which of the processes of that name it is.
    """
    environ = (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)
    if endpoint is None and not any(os.environ.get(name) for name in environ):
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    about = {"service.name": f"deltaserve-{service}", "service.namespace": "deltaserve"}
    if instance:
        about["service.instance.id"] = instance
    provider = TracerProvider(sampler=sampler(share), resource=Resource.create(about))
    exporter = OTLPSpanExporter() if endpoint is None else OTLPSpanExporter(endpoint=endpoint, insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def sampler(share: float | None) -> Sampler | None:
    """Returns what decides about traces that begin here, None for the SDK's own choice.

    Raises:
        ValueError: a share outside of 0 to 1.
    """
    if share is None:
        return None
    if not 0 <= share <= 1:
        raise ValueError(f"trace_share is {share}; expected 0 to 1")
    return ParentBased(TraceIdRatioBased(share))


def shutdown() -> None:
    """Sends what is left."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


@contextlib.contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Span | str | None = None,
    attributes: Attributes | None = None,
    expired: Callable[[], bool] | None = None,
) -> Iterator[Span]:
    """Opens a span that ends with the block, its status from how the block ends: cancellation is an error too.

    Args:
        name: `{operation} {model}` for requests, by the GenAI conventions.
        kind: SERVER for what a client called, INTERNAL otherwise.
        parent: of the span, or its traceparent; None begins a trace.
        attributes: named by the constants of `genai`.
        expired: whether a deadline has passed: then that is what a cancellation is put down to.
    """
    opened = start(name, kind, parent, attributes)
    token = _logged.set(opened)
    try:
        yield opened
    except BaseException as error:
        fail(opened, error_type(error, expired), str(error))
        raise
    finally:
        _logged.reset(token)
        opened.end()


def start(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Span | str | None = None,
    attributes: Attributes | None = None,
) -> Span:
    """Opens a span that the caller ends; arguments as for `span`."""
    context: Context | None
    if isinstance(parent, Span):
        context = trace.set_span_in_context(parent)
    else:
        context = _propagator.extract({"traceparent": parent}) if parent else None
    return trace.get_tracer("deltaserve").start_span(name, context, kind, attributes)


def record(
    name: str, parent: Span, began: float, ended: float, attributes: Attributes | None = None, error: str = ""
) -> None:
    """Makes a span of something that is over.

    Args:
        name: of the span.
        parent: what it was a part of; nothing is made when that is not kept.
        began: `time.monotonic()` seconds.
        ended: likewise; nothing is made when it comes before `began`.
        attributes: named by the constants of `genai`.
        error: the error type if it failed.
    """
    if not parent.get_span_context().trace_flags.sampled or ended < began:
        return
    offset = time.time_ns() - time.monotonic_ns()
    tracer = trace.get_tracer("deltaserve")
    made = tracer.start_span(
        name, trace.set_span_in_context(parent), attributes=attributes, start_time=offset + int(began * 1e9)
    )
    if error:
        fail(made, error)
    made.end(offset + int(ended * 1e9))


def fail(of: Span, kind: str, description: str = "") -> None:
    """Marks a span as failed with an error type."""
    of.set_attribute(ERROR_TYPE, kind)
    of.set_status(Status(StatusCode.ERROR, description or None))


def error_type(error: BaseException, expired: Callable[[], bool] | None = None) -> str:
    """Returns `error.type`: an error's reason, CANCELLED or DEADLINE_EXCEEDED, or the class of any other exception."""
    if isinstance(error, DeltaServeError):
        return error.reason
    if isinstance(error, asyncio.CancelledError):
        return DEADLINE if expired is not None and expired() else CANCELLED
    return type(error).__name__


def traceparent(of: Span) -> str:
    """Returns the W3C traceparent of a span; empty when there is no trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(of))
    return carrier.get("traceparent", "")


def logged() -> Span:
    """Returns the span that what runs here belongs to, for logs and for calls of other services."""
    return _logged.get()
