"""AdminService through a real router."""

from __future__ import annotations

from deltaserve.errors import InvalidArgumentError, NotFoundError, UnavailableError
from deltaserve.v1 import admin_pb2 as pb
from deltaserve.v1 import inference_pb2 as ipb

from .conftest import BASE, BASE_NAME, ScriptedWorker, call_failure, connected, publish, rest, routing, serve, until


async def test_workers_are_listed_with_their_state(store: str, worker: ScriptedWorker) -> None:
    worker.state.running = 2
    worker.state.kv_blocks_total = 9
    worker.state.step_time.FromMilliseconds(12)
    worker.state.residency.add(worker="w0", revision="m@1", tier=ipb.TIER_DISK)
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}", "127.0.0.1:1"]) as (router, client):
        await connected(router)
        workers = (await client.admin.ListWorkers(pb.ListWorkersRequest())).workers
    missing, there = sorted(workers, key=lambda w: w.state)
    assert (missing.address, missing.state) == ("127.0.0.1:1", pb.WORKER_STATE_CONNECTING)
    assert (there.worker, there.address, there.state) == ("w0", f"127.0.0.1:{port}", pb.WORKER_STATE_SERVING)
    assert (there.running, there.kv_blocks_total, there.base_fingerprint) == (2, 9, BASE)
    assert there.step_time.ToMilliseconds() == 12
    assert there.residency[0].revision == "m@1"


async def test_a_drained_worker_gets_nothing_until_it_is_taken_back(store: str) -> None:
    one, two = ScriptedWorker("a"), ScriptedWorker("b")
    async with (
        serve(one) as first,
        serve(two) as second,
        routing(store, [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]) as (router, client),
    ):
        await connected(router, 2)
        await client.admin.DrainWorker(pb.DrainWorkerRequest(worker="a"))
        workers = (await client.admin.ListWorkers(pb.ListWorkersRequest())).workers
        assert {w.worker: w.state for w in workers} == {
            "a": pb.WORKER_STATE_DRAINING,
            "b": pb.WORKER_STATE_SERVING,
        }
        for _ in range(4):
            assert (await rest(client.generate()))[-1].summary.worker == "b"
        await client.admin.DrainWorker(pb.DrainWorkerRequest(worker="b"))
        waiting = client.generate()
        await until(lambda: router.dispatcher.waiting == 1)
        await client.admin.DrainWorker(pb.DrainWorkerRequest(worker="a", undo=True))
        assert (await rest(waiting))[-1].summary.worker == "a"
        error = await call_failure(client.admin.DrainWorker(pb.DrainWorkerRequest(worker="zzz")))
        assert isinstance(error, NotFoundError)
        assert (error.kind, error.name) == ("worker", "zzz")
        error = await call_failure(client.admin.DrainWorker(pb.DrainWorkerRequest()))
        assert isinstance(error, InvalidArgumentError)


async def test_revisions_are_placed(store: str, worker: ScriptedWorker) -> None:
    await publish(store, "m", "5")
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        place = client.admin.PlaceRevision
        await place(pb.PlaceRevisionRequest(model="m", tier=ipb.TIER_DEVICE))
        await place(pb.PlaceRevisionRequest(model="m@5", worker="w0", tier=ipb.TIER_STORE))
        await until(lambda: len(worker.places) == 2)
        assert [(p.revision, p.tier, p.pinned) for p in worker.places] == [
            ("m@5", ipb.TIER_DEVICE, False),
            ("m@5", ipb.TIER_STORE, False),
        ]
        for request, kind in (
            (pb.PlaceRevisionRequest(model="m", tier=ipb.TIER_HOST), InvalidArgumentError),
            (pb.PlaceRevisionRequest(model=BASE_NAME, tier=ipb.TIER_DEVICE), InvalidArgumentError),
            (pb.PlaceRevisionRequest(model="no", tier=ipb.TIER_DEVICE), NotFoundError),
            (pb.PlaceRevisionRequest(model="m", worker="zzz", tier=ipb.TIER_DEVICE), NotFoundError),
        ):
            assert isinstance(await call_failure(place(request)), kind)
    async with routing(store, []) as (_, client):
        request = pb.PlaceRevisionRequest(model="m", tier=ipb.TIER_DEVICE)
        assert isinstance(await call_failure(client.admin.PlaceRevision(request)), UnavailableError)
