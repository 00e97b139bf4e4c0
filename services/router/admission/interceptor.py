"""API keys of gRPC calls, checked before a handler sees the call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from deltaserve.errors import DeltaServeError
from deltaserve.rpc.status import trailing
from services.router.admission.gate import Gate

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]

KEY = "authorization"
_OPEN = ("/grpc.health.", "/grpc.reflection.")
_INFERENCE = "/deltaserve.v1.InferenceService/"


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,type-arg,unused-ignore]
    """Refuses calls without a key that is known, and those of AdminService and ModelService without an admin's.

    Health and reflection are open. Generate looks at the key itself, since it counts by it.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Lets the call pass, or answers it with the error."""
        method = handler_call_details.method
        if method == f"{_INFERENCE}Generate" or method.startswith(_OPEN):
            return await continuation(handler_call_details)
        found = [value for key, value in handler_call_details.invocation_metadata or () if key == KEY]
        authorization = next((value for value in found if isinstance(value, str)), None)
        book = self._gate.quotas.book
        try:
            (book.caller if method.startswith(_INFERENCE) else book.admin)(authorization)
        except DeltaServeError as error:
            return _refusal(error)
        return await continuation(handler_call_details)


def _refusal(error: DeltaServeError) -> Handler:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort(error.code, error.message, trailing_metadata=trailing(error))

    # raw bytes both ways: nothing is read or written, so any method may be answered so
    refusing: Any = refuse
    return grpc.stream_stream_rpc_method_handler(refusing)
