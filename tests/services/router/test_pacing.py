"""Chunks gather while the router is busy, and only then; what is read is the same."""

from __future__ import annotations

import asyncio

from deltaserve.v1.inference_pb2 import Chunk, GenerateResponse
from services.router.outlet import Outlet
from services.router.pacing import Pacing


def test_a_busy_router_gathers_longer_up_to_a_bound_and_recovers() -> None:
    pacing = Pacing()
    for _ in range(5):
        pacing.look(0.4)
        assert pacing.seconds == 0.0
    seen = []
    for _ in range(20):
        pacing.look(0.95)
        seen.append(pacing.seconds)
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == seen[-2] <= 0.05
    pacing.look(0.6)
    assert pacing.seconds == seen[-1]
    for _ in range(20):
        pacing.look(0.1)
    assert pacing.seconds == 0.0


async def test_first_and_last_chunks_go_at_once_and_those_between_are_merged() -> None:
    pacing = Pacing()
    for _ in range(20):
        pacing.look(1.0)
    outlet = Outlet(1 << 20, 10.0, 0.0, lambda paused: None, pacing)
    written: list[list[int]] = []

    async def write(frame: GenerateResponse) -> None:
        written.append(list(frame.chunk.token_ids))

    draining = asyncio.create_task(outlet.drain_to(write))
    for token in range(6):
        outlet.put([GenerateResponse(chunk=Chunk(token_ids=[token]))])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert written == [[0]]
    outlet.finish()
    await draining
    assert written == [[0], [1, 2, 3, 4, 5]]
