"""Workers that are killed, frozen, drained, or asked for a broken model, with real services; clients notice nothing.

How soon a loss is noticed is measured by benchmarks/failover.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.failover import Stream, WorkerProcess, lose_one, publish_packed, routed, serving, until, worker_process
from deltaserve import errors
from deltaserve.client import AsyncClient
from services.router.server import Router

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

STREAMS, TOKENS = 6, 150


class Scene:
    """Two workers, a router and what streams look like undisturbed."""

    def __init__(self, router: Router, client: AsyncClient, workers: list[WorkerProcess], store: Path) -> None:
        self.router, self.client, self.workers, self.store = router, client, workers, store
        self.whole: list[Stream] = []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    home = tmp_path_factory.mktemp("failover")
    store = home / "store"
    for name in ("tuned", "broken"):
        await publish_packed(str(store), "g2p", name)
    payload = store / "deltas" / "broken" / "1" / "delta.safetensors"
    payload.write_bytes(payload.read_bytes()[:-1] + b"?")
    async with contextlib.AsyncExitStack() as stack:
        entered = [
            stack.enter_async_context(worker_process(str(store), home, name, grace_seconds="0.2"))
            for name in ("one", "two")
        ]
        workers = list(await asyncio.gather(*entered))
        router, client = await stack.enter_async_context(routed(str(store), workers))
        scene = Scene(router, client, workers, store)
        scene.whole = await streams(scene)
        yield scene


async def streams(scene: Scene, tokens: int = TOKENS) -> list[Stream]:
    seen = [Stream() for _ in range(STREAMS)]
    await asyncio.gather(*(s.read(scene.client, "tuned", n, tokens) for n, s in enumerate(seen)))
    return seen


def undisturbed(seen: list[Stream], whole: list[Stream]) -> bool:
    """The same tokens, and no frame that tells of a loss: one Accepted, one end, no progress after the first token."""
    for stream, reference in zip(seen, whole, strict=True):
        kinds = stream.kinds
        ends = (kinds.count("accepted"), kinds.count("finished"), kinds.count("summary"))
        after_first = kinds[kinds.index("chunk") :]
        if stream.tokens != reference.tokens or ends != (1, 1, 1) or "progress" in after_first:
            return False
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_streams_of_a_lost_worker_are_token_identical(scene: Scene, how: signal.Signals) -> None:
    assert all(len(stream.tokens) == TOKENS for stream in scene.whole)
    _, seen = await lose_one(scene.router, scene.client, scene.workers, how, STREAMS, TOKENS)
    assert undisturbed(seen, scene.whole)


async def test_a_worker_that_is_told_to_end_hands_its_streams_over(scene: Scene) -> None:
    tokens = 400  # more than its grace allows
    whole = await streams(scene, tokens)
    seen = [Stream() for _ in range(STREAMS)]
    reading = [asyncio.create_task(s.read(scene.client, "tuned", n, tokens)) for n, s in enumerate(seen)]
    await until(lambda: all(len(stream.tokens) > 10 for stream in seen))
    victim = next(w for w in scene.workers if any(k.name == w.name and k.flights for k in scene.router.fleet.links()))
    assert victim.process is not None
    victim.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*reading)
    assert undisturbed(seen, whole)
    assert await victim.process.wait() == 0
    await victim.start()
    await until(lambda: serving(scene.router) == 2)


async def test_a_drained_worker_finishes_what_it_has_and_gets_nothing_new(scene: Scene) -> None:
    seen = [Stream() for _ in range(STREAMS)]
    reading = [asyncio.create_task(s.read(scene.client, "tuned", n, TOKENS)) for n, s in enumerate(seen)]
    await until(lambda: all(stream.tokens for stream in seen))
    await scene.client.drain_worker("one")
    (drained,) = [link for link in scene.router.fleet.links() if link.name == "one"]
    before = set(drained.flights)
    await asyncio.gather(*(scene.client.complete("tuned", "a", max_tokens=2) for _ in range(8)))
    assert set(drained.flights) <= before
    await asyncio.gather(*reading)
    assert undisturbed(seen, scene.whole)
    await scene.client.drain_worker("one", undo=True)
    assert serving(scene.router) == 2


async def test_a_broken_model_is_left_alone_and_others_go_on(scene: Scene) -> None:
    seen = [Stream() for _ in range(STREAMS)]
    reading = [asyncio.create_task(s.read(scene.client, "tuned", n, TOKENS)) for n, s in enumerate(seen)]
    failures = 0
    while not all(task.done() for task in reading):
        with pytest.raises(errors.DataLossError, match=r"delta\.safetensors"):
            await scene.client.complete("broken", "a", max_tokens=2)
        failures += 1
        await asyncio.sleep(0.01)
    await asyncio.gather(*reading)
    assert undisturbed(seen, scene.whole)
    assert failures > 3
    assert serving(scene.router) == 2  # nobody holds it against the workers
    payload = scene.store / "deltas" / "broken" / "1" / "delta.safetensors"
    payload.write_bytes((scene.store / "deltas" / "tuned" / "1" / "delta.safetensors").read_bytes())
    async with asyncio.timeout(120):  # repaired, it is found again by itself
        while True:
            try:
                await scene.client.complete("broken", "a", max_tokens=2)
                break
            except errors.DataLossError:
                await asyncio.sleep(0.2)
