"""Spans of calls that one message answers; streams (generations, sessions, watches) make their own, or none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.trace import SpanKind

from deltaserve import telemetry
from deltaserve.rpc.interceptors import answering_once

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

TRACEPARENT = "traceparent"
_OURS = "/deltaserve."  # health checks and reflection are not worth a trace


class TraceInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,type-arg,unused-ignore]
    """Opens a SERVER span, below the caller's, for each call of our services with a single response.

    It must be the inner of ErrorInterceptor: it wants the errors as they are raised.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps handlers of unary responses."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.response_streaming or not method.startswith(_OURS):
            return handler
        parent = dict(handler_call_details.invocation_metadata or ()).get(TRACEPARENT)
        return answering_once(handler, lambda inner: _traced(inner, method, parent))


def _traced(inner: Any, method: str, parent: Any) -> Callable[[Any, Context], Awaitable[Any]]:
    service, _, name = method.removeprefix("/").rpartition("/")
    attributes = {"rpc.system.name": "grpc", "rpc.service": service, "rpc.method": name}

    async def call(request: Any, context: Context) -> Any:
        with telemetry.span(
            f"{service}/{name}", SpanKind.SERVER, parent if isinstance(parent, str) else None, attributes
        ):
            return await inner(request, context)

    return call


def metadata() -> tuple[tuple[str, str], ...]:
    """Returns the metadata that continues the trace of what runs here in another service; empty without a trace."""
    parent = telemetry.traceparent(telemetry.logged())
    return ((TRACEPARENT, parent),) if parent else ()
