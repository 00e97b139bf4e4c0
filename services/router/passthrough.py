"""ModelService, passed on to the compressor byte by byte: messages are not parsed, statuses stay as they are."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import grpc

from deltaserve.alongside import alongside
from deltaserve.errors import UnavailableError
from deltaserve.rpc.channels import internal_channel
from deltaserve.rpc.ending import Ending
from deltaserve.rpc.status import DETAILS_KEY, error_from_rpc
from deltaserve.v1 import models_pb2

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Context = grpc.aio.ServicerContext[bytes, bytes]
    Call = grpc.aio.StreamStreamCall[bytes, bytes]
Metadata = tuple[tuple[str, str | bytes], ...]
Edit = Callable[[bytes], bytes]
Check = Callable[[bytes], None]

SERVICE = models_pb2.DESCRIPTOR.services_by_name["ModelService"]

_HOP_BY_HOP = ("grpc-", ":", "user-agent", "content-type", "te")  # of one connection, set anew on the next


class Passthrough:
    """Calls of ModelService, on their way to the compressor and back.

    Metadata, deadline, cancellation and flow control cross in both directions. All methods are passed on as streams
    both ways: on the wire a single message is a stream of one.

    Args:
        address: host:port of the compressor; None: calls are refused.
        edits: what the router changes in responses, by method.
        checks: what raises the error that the router refuses a request with, by method of a single request.
    """

    def __init__(
        self,
        address: str | None,
        edits: Mapping[str, Edit],
        checks: Mapping[str, Check] = MappingProxyType({}),
    ) -> None:
        self._address = address
        self._checks = checks
        self._edits = edits
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Passthrough:
        """Opens the channel; the compressor need not be there yet."""
        if self._address is not None:
            self._channel = internal_channel(self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the channel and with it what still runs."""
        if self._channel is not None:
            await self._channel.close()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds ModelService to a server."""
        handler = grpc.stream_stream_rpc_method_handler
        handlers: dict[str, Any] = {m.name: handler(self._handler(m.name)) for m in SERVICE.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))

    async def call(self, method: str, request: bytes, seconds: float) -> bytes:
        """Asks the compressor on the router's own account, within `seconds`.

        Raises:
            UnavailableError: there is no compressor, or it cannot be reached.
            DeltaServeError: what it answered with.
        """
        if self._channel is None:
            raise UnavailableError("this router has no compressor", retry_seconds=None)
        path = f"/{SERVICE.full_name}/{method}"
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        try:
            answer: bytes = await ask(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return answer

    def _handler(self, method: str) -> Any:
        async def handle(requests: AsyncIterable[bytes], context: Context) -> None:
            await self._pass(method, requests, context)

        return handle

    async def _pass(self, method: str, requests: AsyncIterable[bytes], context: Context) -> None:
        if self._channel is None:
            raise UnavailableError(
                f"this router passes {method} on to no compressor; start it with --compressor HOST:PORT",
                retry_seconds=None,
            )
        if (check := self._checks.get(method)) is not None:
            requests = await _checked(requests, check)
        call: Call = self._channel.stream_stream(f"/{SERVICE.full_name}/{method}")(
            timeout=context.time_remaining(), metadata=_end_to_end(context.invocation_metadata())
        )
        ending = Ending(call)
        async with alongside(_pump(requests, call)):
            try:
                await self._answer(call, context, self._edits.get(method))
            except grpc.aio.AioRpcError as error:
                await self._abort(await ending.error(error), context)
            finally:
                call.cancel()

    async def _answer(self, call: Call, context: Context, edit: Edit | None) -> None:
        response = await call.read()
        if initial := _end_to_end(await call.initial_metadata()):
            await context.send_initial_metadata(initial)
        while isinstance(response, bytes):  # else EOF
            await context.write(edit(response) if edit else response)
            response = await call.read()
        context.set_trailing_metadata(_end_to_end(await call.trailing_metadata()))

    async def _abort(self, error: grpc.aio.AioRpcError, context: Context) -> None:
        trailing = _end_to_end(error.trailing_metadata(), keep=DETAILS_KEY)
        if error.code() is grpc.StatusCode.UNAVAILABLE and all(key != DETAILS_KEY for key, _ in trailing):
            raise UnavailableError(f"the compressor at {self._address} cannot be reached: {error.details()}") from error
        await context.abort(error.code(), error.details() or "", trailing_metadata=trailing)


async def _pump(requests: AsyncIterable[bytes], call: Call) -> None:
    async for request in requests:
        await call.write(request)
    await call.done_writing()


async def _checked(requests: AsyncIterable[bytes], check: Check) -> AsyncIterable[bytes]:
    """Returns the requests, all read, once none of them is refused."""
    read = [request async for request in requests]
    for request in read:
        check(request)
    return _stream(read)


async def _stream(requests: Iterable[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


def _end_to_end(metadata: Any, keep: str = "") -> Metadata:
    return tuple((k, v) for k, v in metadata or () if k == keep or not k.startswith(_HOP_BY_HOP))
