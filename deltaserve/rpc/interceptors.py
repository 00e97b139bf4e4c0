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
        coders: Any = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            streaming: Any = _streaming(inner, method)
            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(streaming, **coders)
            return grpc.unary_stream_rpc_method_handler(streaming, **coders)
        called: Any = _unary(handler.stream_unary if handler.request_streaming else handler.unary_unary, method)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(called, **coders)
        return grpc.unary_unary_rpc_method_handler(called, **coders)


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
