"""What stands around a measured router counts what there is."""

from __future__ import annotations

from pathlib import Path

from benchmarks.router_load.clients import Seen, over_grpc, over_http
from benchmarks.router_load.direct import direct_firsts
from benchmarks.router_load.http2 import connect
from benchmarks.router_load.worker import stepping
from tests.services.router.conftest import connected, routing


async def test_clients_by_hand_see_every_token_of_a_router(tmp_path: Path) -> None:
    settings = {"http_listen": "127.0.0.1:0"}
    async with (
        stepping("127.0.0.1:0", 0.002, 1) as port,
        routing(str(tmp_path), [f"127.0.0.1:{port}"], **settings) as (router, client),
    ):
        await connected(router)
        seen = Seen()
        connection = await connect(f"127.0.0.1:{client.host.port}")
        for tokens in (1, 40):
            await over_grpc(connection, tokens, 0, seen)
        connection.close()
        assert (seen.tokens, len(seen.firsts)) == (41, 2)
        await over_http(f"127.0.0.1:{router.http_port}", 30, seen)
        assert (seen.tokens, len(seen.firsts)) == (71, 3)
        assert len(await direct_firsts(f"127.0.0.1:{port}", 3)) == 3
