"""A slow and a failing store: what is tried again, what it ends with, and that nothing is done twice or half."""

import asyncio
import hashlib
import os
import random
from pathlib import Path

import pytest

from deltaserve.errors import DataLossError, StoreError
from deltaserve.patience import Patience
from deltaserve.store import Store
from tests.stores.fault_proxy import OK, Fault, FaultProxy, Request

ONCE_EACH = [
    Fault(status=500), Fault(status=503), Fault(reset=True), Fault(lose_answer=True), Fault(cut_after=300),
    Fault(delay=0.3), Fault(stall=True),
]  # fmt: skip


@pytest.fixture
def store(faults: FaultProxy, bucket: str) -> Store:
    return Store.open(f"s3://{bucket}/p", Patience(seconds=20, read_seconds=2, write_seconds=2))


@pytest.mark.parametrize("fault", ONCE_EACH, ids=str)
async def test_a_fault_that_passes_is_not_seen(faults: FaultProxy, store: Store, fault: Fault, tmp_path: Path) -> None:
    faults.plan = lambda request: fault if request.number == 0 else OK
    data = os.urandom(9 << 20)
    source = tmp_path / "source"
    source.write_bytes(data)
    assert await store.put_new("jobs/j/000000.json", b"record")
    assert await store.put_file_new("d", source)
    assert await store.get("jobs/j/000000.json") == b"record"
    assert [o.key for o in await store.list("jobs/")] == ["jobs/j/000000.json"]
    await store.get_file("d", tmp_path / "out", size=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert (tmp_path / "out").read_bytes() == data


async def test_a_create_whose_answer_is_lost_belongs_to_its_writer(faults: FaultProxy, store: Store) -> None:
    faults.plan = lambda request: Fault(lose_answer=True) if request.method == "PUT" and request.number == 0 else OK
    assert await store.put_new("claim", b"mine")  # it was carried out, though the first answer never came
    assert not await store.put_new("claim", b"another's")
    assert await store.get("claim") == b"mine"


async def test_a_create_that_is_tried_again_does_not_take_what_another_wrote_meanwhile(
    faults: FaultProxy, store: Store
) -> None:
    faults.plan = lambda request: Fault(status=503, delay=0.3) if request.number == 0 else OK
    mine = asyncio.create_task(store.put_new("claim", b"mine"))
    await asyncio.sleep(0.1)
    assert await store.put_new("claim", b"another's")
    assert not await mine
    assert await store.get("claim") == b"another's"


async def test_a_store_that_stays_away_ends_with_a_clear_error(faults: FaultProxy, bucket: str, tmp_path: Path) -> None:
    store = Store.open(f"s3://{bucket}/p", Patience(seconds=1.0, read_seconds=1))
    faults.plan = lambda _: Fault(status=503)
    target = tmp_path / "target"
    target.write_bytes(b"before")
    with pytest.raises(StoreError, match=r"failed to get 'k', \d+ times in \d\.\d s; at last: .*503") as failed:
        await store.get("k")
    assert "Debug source" not in failed.value.message
    for call in (store.put_new("k", b"x"), store.list("a/"), store.get_file("k", target, size=1, sha256="")):
        with pytest.raises(StoreError, match="times in"):
            await call
    assert target.read_bytes() == b"before"
    assert not list(tmp_path.glob(".tmp-*"))


async def test_refusals_are_not_tried_again(faults: FaultProxy, store: Store) -> None:
    faults.plan = lambda _: Fault(status=403)
    with pytest.raises(StoreError, match=r"refused to get 'k'.*credentials"):
        await store.get("k")
    assert len(faults.seen) == 1


async def test_damage_on_the_way_is_found(faults: FaultProxy, store: Store, tmp_path: Path) -> None:
    data = os.urandom(1000)
    assert await store.put_new("k", data)
    faults.plan = lambda request: Fault(flip=True) if request.method == "GET" else OK
    with pytest.raises(DataLossError, match="sha256"):
        await store.get_file("k", tmp_path / "out", size=1000, sha256=hashlib.sha256(data).hexdigest())
    assert not list(tmp_path.iterdir())


async def test_under_random_faults_every_key_has_one_creator_and_its_bytes(faults: FaultProxy, store: Store) -> None:
    chance = random.Random(os.urandom(8))
    kinds = [Fault(status=500), Fault(status=503), Fault(reset=True), Fault(lose_answer=True), Fault(cut_after=40)]

    def plan(request: Request) -> Fault:
        return chance.choice(kinds) if chance.random() < 0.3 else OK

    faults.plan = plan

    async def write(key: str) -> tuple[str, bytes, bool]:
        data = os.urandom(50)
        return key, data, await store.put_new(key, data)

    outcomes = await asyncio.gather(*(write(f"k{number % 10}") for number in range(40)))
    for key in {key for key, _, _ in outcomes}:
        winners = [data for k, data, created in outcomes if k == key and created]
        assert len(winners) == 1, key
        assert await store.get(key) == winners[0]
