"""The server interceptor that turns errors raised in handlers into statuses with details."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from deltaserve.errors import DeltaServeError, InternalError
from deltaserve.rpc.status import trailing

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,type-arg,unused-ignore]
    """Aborts a call with the status of the DeltaServeError its handler raised; anything else is INTERNAL and logged."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the handler, whichever of the four shapes it has."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if not handler.response_streaming:
            return answering_once(handler, lambda inner: _unary(inner, method))
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        streaming: Any = _streaming(inner, method)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(streaming, **_coders(handler))
        return grpc.unary_stream_rpc_method_handler(streaming, **_coders(handler))


def answering_once(handler: Handler, wrap: Callable[[Any], Any]) -> Handler:
    """Returns a handler with a single response whose function is wrapped."""
    called = wrap(handler.stream_unary if handler.request_streaming else handler.unary_unary)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(called, **_coders(handler))
    return grpc.unary_unary_rpc_method_handler(called, **_coders(handler))


def _coders(handler: Handler) -> Any:
    return {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }


def _unary(inner: Any, method: str) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await inner(request, context)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            await _abort(context, error, method)

    return call


def _streaming(inner: Any, method: str) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            responses = inner(request, context)
            if isinstance(responses, Awaitable):  # a handler that calls context.write itself
                await responses
                return
            async for response in responses:
                yield response
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            await _abort(context, error, method)

    return call


async def _abort(context: Context, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError):
        raise error
    if isinstance(error, NotImplementedError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented by this server")
    if not isinstance(error, DeltaServeError):
        log.error("%s failed", method, exc_info=error)
        error = InternalError(f"internal error in {method}: {type(error).__name__}: {error}")
    await context.abort(error.code, error.message, trailing_metadata=trailing(error))
