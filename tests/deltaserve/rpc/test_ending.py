"""A status is not lost when a write fails because of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from deltaserve.errors import DataLossError
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.ending import Ending
from deltaserve.rpc.servers import serving
from deltaserve.rpc.status import error_from_rpc

METHOD = "/test.Sink/Put"


async def refusing(requests: AsyncIterator[bytes], context: Any) -> bytes:
    async for _ in requests:
        raise DataLossError("bad bytes", at=7)
    return b""


def register(server: grpc.aio.Server) -> None:
    handlers: Any = {"Put": grpc.stream_unary_rpc_method_handler(refusing)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Sink", handlers),))


async def test_the_servers_status_is_told_however_the_race_goes() -> None:
    async with serving("127.0.0.1:0", register, []) as host, edge_channel(f"127.0.0.1:{host.port}") as channel:
        for _ in range(60):
            call: Any = channel.stream_unary(METHOD)()
            ending = Ending(call)
            try:
                with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended: its status says why
                    while True:
                        await call.write(b"x" * 100_000)
                await call
            except grpc.aio.AioRpcError as error:
                real = error_from_rpc(await ending.error(error))
                assert isinstance(real, DataLossError)
                assert real.metadata == {"at": "7"}


async def test_other_errors_are_left_alone() -> None:
    async with edge_channel("127.0.0.1:1") as channel:
        call: Any = channel.stream_unary(METHOD)()
        ending = Ending(call)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert (await ending.error(caught.value)) is caught.value
