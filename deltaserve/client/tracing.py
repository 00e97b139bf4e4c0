"""Spans of the client's calls, for applications that have set up OpenTelemetry; without that they cost nothing."""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from deltaserve import genai, telemetry
from deltaserve.v1 import inference_pb2 as pb

Metadata = tuple[tuple[str, str], ...]


def calling(span: Span | None = None) -> Metadata:
    """Returns metadata that puts a call below a span: by default the application's current one."""
    parent = telemetry.traceparent(trace.get_current_span() if span is None else span)
    return (("traceparent", parent),) if parent else ()


class ClientSpan:
    """The span of one generation, below the application's current one. It ends as the application saw it end."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        self._span: Span = INVALID_SPAN
        self._error: BaseException | None = None
        self._reasons: list[str] = []

    def begin(self) -> Metadata:
        """Opens the span; returns the metadata to send."""
        name = f"{genai.operation(self._request)} {self._request.model}"
        self._span = telemetry.start(name, SpanKind.CLIENT, attributes=genai.request_attributes(self._request))
        return calling(self._span)

    def accepted(self, accepted: pb.Accepted) -> None:
        """Notes who answers."""
        self._span.set_attributes({genai.RESPONSE_ID: accepted.request_id, genai.RESPONSE_MODEL: accepted.model})

    def finished(self, finished: pb.Finished) -> None:
        """Notes why a choice ended."""
        self._reasons.append(genai.finish_reason(finished.reason))

    def summed_up(self, summary: pb.Summary) -> None:
        """Notes the usage."""
        usage = summary.usage
        self._span.set_attributes(
            {
                genai.INPUT_TOKENS: usage.prompt_tokens,
                genai.OUTPUT_TOKENS: usage.completion_tokens,
                genai.FINISH_REASONS: self._reasons,
            }
        )

    def failed(self, error: BaseException) -> None:
        """Notes the status that the call ended with."""
        self._error = error

    def end(self, complete: bool, raised: BaseException | None) -> None:
        """Ends the span, of a generation that was left before it was complete as cancelled."""
        if not complete:
            error = self._error or (raised if isinstance(raised, Exception) else asyncio.CancelledError())
            telemetry.fail(self._span, telemetry.error_type(error), str(error))
        self._span.end()
