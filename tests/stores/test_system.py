"""All services on `s3://`: upload, compress, publish, load, generate; then with the store failing under them."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import AsyncClient
from deltaserve.errors import DataLossError, DeltaServeError
from deltaserve.store import Store
from tests.e2e.conftest import MODELS, System, prompts
from tests.stores.fault_proxy import OK, Fault, FaultProxy, Request

pytestmark = pytest.mark.slow


@pytest.fixture
async def system(
    faults: FaultProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[System]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = StackOptions(
        base=MODELS / "base", home=tmp_path, store=f"s3://{bucket}/tenant/deltas", listen="127.0.0.1:0", threads=1
    )
    async with Stack(options) as stack, AsyncClient(stack.address) as client:
        yield System(stack, client, tmp_path)


async def test_the_whole_system_lives_on_s3(system: System, faults: FaultProxy, bucket: str) -> None:
    client = system.client
    await system.publish("conj_fr", MODELS / "conj_fr", codec="int4", calibration_samples=4)
    for name in ("g2p", "section"):
        await system.publish(name, MODELS / name)
    await system.publish("damaged", MODELS / "g2p")
    keys = {o.key for o in await Store.open(f"s3://{bucket}/tenant/deltas").list("")}
    assert {"deltas/conj_fr/1/manifest.json", "deltas/conj_fr/1/delta.safetensors"} <= keys
    assert any(key.startswith("bases/") and key.endswith("/base.json") for key in keys)
    before = await _greedy(client, "conj_fr")
    base = await _greedy(client, "base")

    faults.plan = lambda _: Fault(status=503)  # away: what is loaded goes on, what is not waits for it
    waiting = asyncio.create_task(_greedy(client, "g2p"))
    for _ in range(5):
        assert await _greedy(client, "conj_fr") == before
        assert await _greedy(client, "base") == base
    assert not waiting.done()
    faults.plan = lambda _: OK
    assert await waiting

    chance = random.Random(os.urandom(8))
    kinds = [Fault(status=500), Fault(reset=True), Fault(cut_after=1000), Fault(delay=0.5)]
    faults.plan = lambda _: chance.choice(kinds) if chance.random() < 0.4 else OK
    assert await _greedy(client, "section")
    assert await _greedy(client, "conj_fr") == before

    faults.plan = _damaging
    with pytest.raises(DataLossError, match="damaged"):
        await client.complete("damaged", prompts("g2p", 1)[0], max_tokens=4)
    assert await _greedy(client, "conj_fr") == before
    faults.plan = lambda _: OK
    assert await _greedy(client, "damaged") == await _greedy(client, "g2p")


async def test_a_store_that_stays_away_ends_the_request_with_its_reason(system: System, faults: FaultProxy) -> None:
    await system.publish("g2p", MODELS / "g2p")
    faults.plan = lambda request: Fault(status=503) if "delta.safetensors" in request.target else OK
    with pytest.raises(DeltaServeError, match=r"times in .*503") as failed:
        await system.client.complete("g2p", prompts("g2p", 1)[0], max_tokens=4, timeout=120)
    assert failed.value.code == grpc.StatusCode.UNAVAILABLE
    faults.plan = lambda _: OK
    assert await _greedy(system.client, "g2p")


def _damaging(request: Request) -> Fault:
    return Fault(flip=request.method == "GET" and "deltas/damaged/1/delta.safetensors" in request.target)


async def _greedy(client: AsyncClient, model: str) -> list[int]:
    done = await client.complete(model, prompts("conj_fr", 1)[0], temperature=0, max_tokens=8, ignore_eos=True)
    return list(done.token_ids)
