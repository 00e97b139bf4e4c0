"""The way of a delta to memory, with a real store and disk cache; the engine's side is played by hand."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deltaserve.delta.manifest import parse_manifest
from deltaserve.errors import DataLossError, DeltaServeError, NotFoundError, QuotaError, WorkerLostError
from deltaserve.names import parse_revision
from deltaserve.store import Store, delta_key
from deltaserve.v1 import inference_pb2 as pb
from services.worker.front.deltas import Arrival, Deltas
from services.worker.front.disk import DiskCache
from services.worker.front.revisions import PublishedDelta
from services.worker.messages import DeltaChanged, DeltaUse, Drop, Load, ToEngine

NAME = "m@1"


class Scene:
    """Deltas between a store and an engine."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open("memory://")
        self.disk = DiskCache(folder, 1 << 20, self.store)
        self.sent: list[ToEngine] = []
        self.failures: list[tuple[str, DeltaServeError]] = []
        self.deltas = Deltas(self.disk, self.sent.append, lambda name, error: self.failures.append((name, error)))

    async def delta(self) -> PublishedDelta:
        name = parse_revision(NAME)
        raw = await self.store.get(delta_key(name, "manifest.json"))
        return PublishedDelta(name, parse_manifest(raw), raw)

    async def arrive(self) -> Arrival:
        """Brings the delta as far as the engine's answer."""
        arrival = self.deltas.bring(await self.delta())
        assert arrival is not None
        await asyncio.wait_for(arrival.on_disk.wait(), 60)
        return arrival

    def answer(self, state: str = "resident", **fields: Any) -> None:
        self.deltas.changed(DeltaChanged(revision=NAME, state=state, **fields))


@pytest.fixture
async def scene(tmp_path: Path, publish: Any) -> Scene:
    scene = Scene(tmp_path)
    await publish(scene.store, NAME, {"extra.bin": b"x" * 1000})
    return scene


async def test_store_to_disk_to_memory(scene: Scene, tmp_path: Path) -> None:
    assert scene.deltas.tier(NAME) == pb.TIER_STORE
    arrival = await scene.arrive()
    assert scene.deltas.bring(await scene.delta()) is arrival  # others join
    assert arrival.source == pb.TIER_STORE
    assert arrival.bytes_done == arrival.bytes_total == 1000 + len(b"payload of m@1")
    assert scene.sent == [Load(NAME, str(tmp_path / "m" / "1"), False)]
    assert scene.deltas.tier(NAME) == pb.TIER_DISK
    assert not arrival.done.is_set()
    scene.answer(bytes=77)
    assert arrival.done.is_set()
    assert scene.deltas.bring(await scene.delta()) is None
    assert scene.deltas.tier(NAME) == pb.TIER_DEVICE
    scene.deltas.uses([DeltaUse(revision=NAME, bytes=77, in_use=3, decoded=False)])
    scene.answer("decoded", bytes=99)
    (residency,) = scene.deltas.residency("w")
    assert residency == pb.Residency(worker="w", revision=NAME, tier=pb.TIER_DECODED, bytes=99, in_use=3)
    scene.answer("dropped")
    (residency,) = scene.deltas.residency("w")
    assert (residency.tier, residency.bytes) == (pb.TIER_DISK, arrival.bytes_total)


async def test_a_wanted_delta_is_loaded_again(scene: Scene) -> None:
    delta = await scene.delta()
    scene.deltas.wanted(delta)  # nothing is known of it
    scene.deltas.wanted(delta)  # on its way
    arrival = await scene.arrive()
    assert len(scene.sent) == 1
    scene.answer("dropped")  # before it was loaded: room was taken by others
    assert arrival.done.is_set()
    scene.deltas.wanted(delta)
    await scene.arrive()
    assert len(scene.sent) == 2
    scene.deltas.wanted(delta)  # the engine forgot a Load that was on its way
    assert len(scene.sent) == 3
    scene.answer()
    assert scene.deltas.tier(NAME) == pb.TIER_DEVICE


async def test_what_the_store_lacks_fails(scene: Scene) -> None:
    await scene.store.delete(delta_key(parse_revision(NAME), "extra.bin"))
    arrival = await scene.arrive()
    assert arrival.folder is None
    ((name, error),) = scene.failures
    assert name == NAME
    assert isinstance(error, NotFoundError)
    assert scene.sent == []


@pytest.mark.parametrize(("code", "expected"), [("CHECKSUM_MISMATCH", DataLossError), ("QUOTA_EXCEEDED", QuotaError)])
async def test_what_the_engine_refuses_fails(scene: Scene, code: str, expected: type[DeltaServeError]) -> None:
    arrival = await scene.arrive()
    scene.answer("failed", error="no good", error_code=code)
    assert arrival.done.is_set()
    ((_, error),) = scene.failures
    assert isinstance(error, expected)
    assert error.message == "no good"
    await asyncio.sleep(0.1)
    assert (scene.disk.entries() == {}) == (expected is DataLossError)  # bad bytes are fetched anew


async def test_a_delta_that_keeps_failing_is_not_fetched_for_every_request(scene: Scene) -> None:
    for _ in range(3):
        await scene.arrive()
        scene.answer("failed", error="no good", error_code="CHECKSUM_MISMATCH")
        await asyncio.sleep(0.05)  # until it is off the disk
    sent = len(scene.sent)
    with pytest.raises(DataLossError, match="no good"):
        scene.deltas.bring(await scene.delta())
    with pytest.raises(DataLossError):
        scene.deltas.wanted(await scene.delta())
    assert len(scene.sent) == sent


async def test_an_engine_that_dies_is_no_fault_of_its_deltas(scene: Scene) -> None:
    for _ in range(5):
        await scene.arrive()
        scene.deltas.engine_lost(WorkerLostError("died"))
    await scene.arrive()


async def test_orders(scene: Scene) -> None:
    scene.deltas.pin(await scene.delta(), True)
    await scene.arrive()
    assert [m for m in scene.sent if isinstance(m, Load) and m.pinned]
    scene.answer()
    scene.deltas.pin(await scene.delta(), True)
    assert len(scene.sent) == 1
    scene.deltas.pin(await scene.delta(), False)
    assert [m.pinned for m in scene.sent if isinstance(m, Load)] == [True, False]
    scene.deltas.drop(NAME)
    assert scene.sent[-1] == Drop(NAME)


async def test_a_lost_engine_takes_everything_along(scene: Scene) -> None:
    arrival = await scene.arrive()
    scene.deltas.engine_lost(WorkerLostError("died"))
    assert arrival.done.is_set()
    assert [name for name, _ in scene.failures] == [NAME]
    assert scene.deltas.tier(NAME) == pb.TIER_DISK
    await scene.deltas.close()


def test_eta() -> None:
    arrival = Arrival(NAME, pb.TIER_STORE, bytes_total=100, started=10.0)
    assert arrival.eta_seconds(12.0) is None
    arrival.bytes_done = 25
    assert arrival.eta_seconds(12.0) == 6.0
    arrival.bytes_done = 100
    assert arrival.eta_seconds(12.0) is None


async def test_an_order_for_the_disk_stops_there(scene: Scene) -> None:
    scene.deltas.cache(await scene.delta())
    (arriving,) = scene.deltas.transfers().arriving
    assert (arriving.revision, arriving.to_memory) == (NAME, False)
    while scene.deltas.transfers().arriving:
        await asyncio.sleep(0.01)
    assert scene.deltas.tier(NAME) == pb.TIER_DISK
    assert scene.sent == []
    assert scene.deltas.transfers().disk_used == scene.disk.used_bytes > 1000
    scene.deltas.cache(await scene.delta())  # it is there
    assert scene.deltas.transfers().arriving == []


async def test_who_asks_meanwhile_has_it_go_on_to_memory(scene: Scene) -> None:
    scene.deltas.cache(await scene.delta())
    arrival = await scene.arrive()
    assert [type(message) for message in scene.sent] == [Load]
    scene.answer(bytes=7, load_seconds=0.5)
    assert arrival.done.is_set()
    (sample,) = scene.deltas.transfers().loads
    assert (sample.source, sample.bytes) == (pb.TIER_STORE, arrival.bytes_total)
    assert sample.time.ToNanoseconds() / 1e9 == pytest.approx(0.5 + arrival.fetched)
