"""Several routers on one port."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest

from deltaserve.errors import UnavailableError
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1.inference_pb2_grpc import InferenceServiceStub

from .conftest import BASE_NAME, ScriptedWorker, connected, rest, routing, serve


async def test_connections_spread_over_routers_that_share_a_port(store: str, worker: ScriptedWorker) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = {"listen": address, "reuse_port": True}

    async def ask() -> None:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            await rest(
                InferenceServiceStub(channel).Generate(pb.GenerateRequest(model=BASE_NAME, text="a"), timeout=60)
            )

    other = ScriptedWorker()  # a scripted worker serves one router
    async with (
        serve(worker) as port,
        serve(other) as other_port,
        routing(store, [f"127.0.0.1:{port}"], **shared) as (one, _),
        routing(store, [f"127.0.0.1:{other_port}"], **shared) as (two, _),
    ):
        await connected(one)
        await connected(two)
        await asyncio.gather(*(ask() for _ in range(40)))
        totals = [router.rates.rates(BASE_NAME, 0.0).total for router in (one, two)]
        assert [len(worker.submits), len(other.submits)] == totals
        assert sum(totals) == 40
        assert min(totals) > 0
        with pytest.raises(UnavailableError, match="is the port taken"):
            async with routing(store, [], listen=address):
                pass
