"""Placement with two real workers and two routers: prefetch before the request, copies of a hot model, one mind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from deltaserve.client import AsyncClient
from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE, dump_manifest, parse_manifest
from deltaserve.names import RevisionName
from deltaserve.store import Store, delta_key
from deltaserve.v1 import admin_pb2
from deltaserve.v1 import inference_pb2 as pb
from services.router.server import Router
from services.router.settings import RouterSettings
from tests.e2e.conftest import MODELS, ROOT

PLACED = "section"  # the packed delta that ships is published under several names


@contextlib.asynccontextmanager
async def worker(store: str, home: Path, name: str) -> AsyncIterator[str]:
    """Runs a worker whose memory holds two deltas; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = {
        "base": str(MODELS / "base"), "store": store, "listen": address, "name": name, "cache": str(home / name),
        "threads": "1", "notice-seconds": "0", "grace-seconds": "1", "max-running": "2", "decoded-bytes": "0",
        "delta-bytes": str(5_000_000),
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DELTASERVE_")} | {"OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.worker", *(x for k, v in flags.items() for x in (f"--{k}", v)),
        cwd=ROOT, env=environment,
    )  # fmt: skip
    try:
        yield address
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def router(store: str, name: str, workers: list[str]) -> AsyncIterator[AsyncClient]:
    # a test cannot wait for habits to form: what was asked for in the last minutes is probable enough here
    settings = RouterSettings(
        store=store, workers=tuple(workers), listen="127.0.0.1:0", name=name, placement_seconds=1.0,
        prefetch_probability=0.02, catalog_seconds=0.5, notice_seconds=0.0,
    )  # fmt: skip
    async with Router(settings).running() as host, AsyncClient(f"127.0.0.1:{host.port}") as client:
        yield client


async def publish(uri: str, model: str) -> str:
    """Publishes the delta that ships under another name."""
    source, name, store = MODELS / PLACED, RevisionName(model, "1"), Store.open(uri)
    manifest = parse_manifest((source / MANIFEST_FILE).read_bytes())
    for entry in manifest.files:
        if entry.source == "delta":
            await store.put_new(delta_key(name, entry.path), (source / entry.path).read_bytes())
    assert any(entry.path == DELTA_FILE for entry in manifest.files)
    changed = msgspec.structs.replace(manifest, model=model, revision="1")
    assert await store.put_new(delta_key(name, MANIFEST_FILE), dump_manifest(changed))
    return str(name)


async def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.1)


async def holders(client: AsyncClient, revision: str) -> set[str]:
    return {
        w.worker for w in await client.workers() for r in w.residency
        if r.revision == revision and r.tier >= pb.TIER_DEVICE
    }  # fmt: skip


async def serving(client: AsyncClient) -> bool:
    return sum(w.state == admin_pb2.WORKER_STATE_SERVING for w in await client.workers()) == 2


async def digests(client: AsyncClient, seconds: float) -> dict[int, str]:
    """Collects what each round of the next seconds decided, by the time of the round."""
    found: dict[int, str] = {}
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        placement = await client.placement()
        found[placement.decided_at.ToMilliseconds()] = placement.digest
        await asyncio.sleep(0.2)
    return found


@pytest.mark.slow
async def test_prefetch_copies_and_agreement(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    often, hot, never = [await publish(store, name) for name in ("often", "hot", "never")]
    async with (
        worker(store, tmp_path, "one") as one,
        worker(store, tmp_path, "two") as two,
        router(store, "left", [one, two]) as left,
    ):
        await until(lambda: serving(left), 90)

        # a model that is asked for again and again leaves the memory, and is back before it is asked for the next time
        for _ in range(5):
            await left.complete("often", "a", max_tokens=2)
            await asyncio.sleep(0.5)
        (home,) = await holders(left, often)
        await left.place("often", pb.TIER_STORE, home)
        await until(lambda: _ordered(left, often, pb.TIER_DEVICE))
        await until(lambda: holders(left, often))
        done = await left.complete("often", "b", max_tokens=2)
        assert done.summary.source_tier == pb.TIER_DEVICE
        assert not await holders(left, never)

        # a second router learns from the workers what came before it, and decides the same
        async with router(store, "right", [two, one]) as right:
            await until(lambda: serving(right))
            await asyncio.sleep(2.5)  # reports have settled
            here, there = await asyncio.gather(digests(left, 8), digests(right, 8))
            common = here.keys() & there.keys()
            assert len(common) >= 3
            assert {at: here[at] for at in common} == {at: there[at] for at in common}
            placed = {p.revision: p for p in (await right.placement()).revisions}
            assert placed[often].probability > 0
            assert list(placed[often].memory) == sorted(await holders(left, often))

            # a hot model gets a copy on the second worker
            asking = [asyncio.create_task(_ask(client, "hot", 6)) for client in (left, right) for _ in range(2)]
            await until(lambda: _has_copies(left, hot, 2))
            await asyncio.gather(*asking)
            assert await holders(left, hot) == {"one", "two"}

            # which placement keeps up: it is back where it was taken from, unasked
            await left.place("hot", pb.TIER_STORE, "two")
            await until(lambda: _ordered(left, hot, pb.TIER_DEVICE))
            await until(lambda: _has_copies(right, hot, 2))


async def _ordered(client: AsyncClient, revision: str, tier: pb.Tier.ValueType) -> bool:
    orders = (await client.placement()).orders
    return any(o.revision == revision and o.tier == tier for o in orders)


async def _ask(client: AsyncClient, model: str, times: int) -> None:
    for _ in range(times):
        await client.complete(model, "a", max_tokens=100, ignore_eos=True)


async def _has_copies(client: AsyncClient, revision: str, count: int) -> bool:
    placed = {p.revision: p for p in (await client.placement()).revisions}
    return revision in placed and placed[revision].copies == count and len(await holders(client, revision)) == count
