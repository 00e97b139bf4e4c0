"""Rounds of placement against workers that are scripted but speak the real protocol."""

from __future__ import annotations

import time

from deltaserve.store import Store
from deltaserve.v1 import admin_pb2
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from services.router.costs import Tier

from .conftest import ScriptedWorker, connected, publish, rest, routing, serve, until

OFF = {"placement_seconds": 0.0}  # rounds are held by hand


def asked_every(seconds: float, revision: str, now: float, count: int = 30) -> wpb.Arrivals:
    times = [int((now - 2 - seconds * i) * 1000) for i in range(count)]
    return wpb.Arrivals(revisions=[wpb.ArrivalTimes(revision=revision, unix_ms=times[::-1])])


def tell(worker: ScriptedWorker, arrivals: wpb.Arrivals) -> None:
    worker._outbox.put_nowait(wpb.SessionResponse(arrivals=arrivals))


async def test_a_probable_model_is_ordered_and_the_answer_says_why(store: str) -> None:
    name, rare = await publish(store, "m", "1"), await publish(store, "rare", "1")
    now = time.time()
    one = ScriptedWorker("a")
    one.state.residency.add(worker="a", revision=rare, tier=pb.TIER_DEVICE, bytes=900)
    one.state.delta_bytes_budget = 1500
    async with serve(one) as port, routing(store, [f"127.0.0.1:{port}"], **OFF) as (router, client):
        await connected(router)
        await until(lambda: len(router.placer._published) == 2)
        assert not (await client.admin.GetPlacement(admin_pb2.GetPlacementRequest())).HasField("decided_at")
        tell(one, asked_every(5, name, now))
        await until(lambda: any(link.arrivals for link in router.fleet.links()))
        await router.placer.round(now)
        await until(lambda: len(one.places) == 2)
        assert [(p.revision, p.tier) for p in one.places] == [(rare, pb.TIER_STORE), (name, pb.TIER_DEVICE)]
        answer = await client.admin.GetPlacement(admin_pb2.GetPlacementRequest(model="m"))
        (placed,) = answer.revisions
        assert (placed.revision, placed.copies, list(placed.memory)) == (name, 1, ["a"])
        assert placed.probability > 0.8
        assert 0.1 < placed.long_rate < 0.3
        assert placed.next_request.ToSeconds() < 10
        assert [o.revision for o in answer.orders] == [name]
        assert "probability" in answer.orders[0].reason
        assert answer.decided_at.ToSeconds() == int(now)

        # on its way, it is not ordered again; once it is there, its worth is told
        one.state.arriving.add(revision=name, bytes_total=1000, bytes_done=1, to_memory=True)
        one.report()
        await until(lambda: router.fleet.links()[0].report.arriving)
        await router.placer.round(now + 1)
        del one.state.arriving[:]
        one.state.residency[0].CopyFrom(pb.Residency(worker="a", revision=name, tier=pb.TIER_DEVICE, bytes=1000))
        one.report()
        await until(lambda: router.fleet.links()[0].report.residency[0].revision == name)
        await router.placer.round(now + 2)
        await until(lambda: one.worths and name in one.worths[-1].by_revision)
        assert one.worths[-1].by_revision[name] > 0
        assert len(one.places) == 2


async def test_a_router_that_comes_later_decides_the_same(store: str) -> None:
    names = [await publish(store, f"m{i}", "1") for i in range(8)]
    now = time.time()
    workers = [ScriptedWorker(name) for name in "ab"]
    async with serve(workers[0]) as a, serve(workers[1]) as b:
        addresses = [f"127.0.0.1:{a}", f"127.0.0.1:{b}"]
        digests = []
        for order in (addresses, addresses[::-1]):  # a scripted worker has one session at a time
            async with routing(store, order, **OFF) as (router, _):
                await connected(router, 2)
                await until(lambda: len(router.placer._published) == 8)
                for number, worker in enumerate(workers):
                    worker.places.clear()
                    whole = wpb.Arrivals()
                    for half, name in enumerate(names[number::2]):
                        whole.MergeFrom(asked_every(4 + half, name, now))
                    tell(worker, whole)
                await until(lambda: all(link.arrivals for link in router.fleet.links()))
                await router.placer.round(now)
                await until(lambda: all(worker.places for worker in workers))
                orders = sorted((p.revision, p.tier) for worker in workers for p in worker.places)
                digests.append((router.placer.last.digest, orders))
        assert digests[0] == digests[1]


async def test_a_pinned_model_stays_pinned_when_placement_orders_it(store: str) -> None:
    name = await publish(store, "m", "1")
    from deltaserve.catalog import PIN, write_setting

    await write_setting(Store.open(store), PIN, "m", {"pinned": True})
    one = ScriptedWorker("a")
    async with serve(one) as port, routing(store, [f"127.0.0.1:{port}"], **OFF) as (router, _):
        await connected(router)
        await until(lambda: one.places)
        await router.placer.round(time.time())
        await until(lambda: len(one.places) == 2)
        assert all((p.revision, p.tier, p.pinned) == (name, pb.TIER_DEVICE, True) for p in one.places)
        assert router.placer.last.placed[name].demand.pinned


async def test_a_new_revision_takes_over_what_is_expected_of_the_old(store: str) -> None:
    old = await publish(store, "m", "1")
    now = time.time()
    one = ScriptedWorker("a")
    async with serve(one) as port, routing(store, [f"127.0.0.1:{port}"], **OFF) as (router, _):
        await connected(router)
        tell(one, asked_every(5, old, now))
        await until(lambda: any(link.arrivals for link in router.fleet.links()))
        await router.placer.round(now)
        new = await publish(store, "m", "2")
        await until(lambda: new in router.placer._published)
        await router.placer.round(now + 1)
        assert router.placer.last.placed[new].demand.probability > 0.8


async def test_measured_loads_and_a_prefix_cache_steer_requests(store: str) -> None:
    await publish(store, "m", "1", delta_bytes=1_000_000_000)
    slow, quick = ScriptedWorker("slow"), ScriptedWorker("quick")
    for worker, seconds in ((slow, 30), (quick, 1)):
        sample = worker.state.loads.add(source=pb.TIER_STORE, bytes=1_000_000_000)
        sample.time.FromSeconds(seconds)
    async with (
        serve(slow) as a,
        serve(quick) as b,
        routing(store, [f"127.0.0.1:{a}", f"127.0.0.1:{b}"], **OFF) as (router, client),
    ):
        await connected(router, 2)
        await rest(client.generate(model="m"))
        assert (len(slow.submits), len(quick.submits)) == (0, 1)
        assert {link.name: round(link.costs.factor[Tier.STORE], 2) for link in router.fleet.links()} == {
            "slow": 5.88, "quick": 0.2,
        }  # fmt: skip

        # both have it now, and the busier one saw this prompt before
        prompt = "w " * 400
        for worker in (slow, quick):
            worker.state.residency.add(worker=worker.welcome.worker, revision="m@1", tier=pb.TIER_DEVICE)
            worker.state.prefix_token_time.FromMilliseconds(2)
            worker.report()
        await until(lambda: all(link.report.residency and link.prefix_token_seconds for link in router.fleet.links()))
        await rest(client.generate(prompt, model="m"))
        first = slow if len(slow.submits) == 1 else quick
        first.state.running = 1
        first.report()
        await until(lambda: any(link.report.running for link in router.fleet.links()))
        before = len(first.submits)
        await rest(client.generate(prompt + "and more", model="m"))
        assert len(first.submits) == before + 1
        await rest(client.generate("quite another prompt " * 50, model="m"))
        assert len(first.submits) == before + 1
