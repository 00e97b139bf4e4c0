"""Canaries and shadows through a real router, with workers whose answers a test decides."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

import pytest

from deltaserve.aliases import AliasVersion, Route, Shadow
from deltaserve.catalog import write_alias
from deltaserve.errors import DrainingError, InternalError, InvalidArgumentError, PreconditionError
from deltaserve.rpc.servers import serving
from deltaserve.store import Store
from deltaserve.v1 import admin_pb2
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import models_pb2 as mpb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.models_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server

from .conftest import (
    ScriptedWorker,
    answer,
    call_failure,
    chunk,
    connected,
    ending,
    failure,
    publish,
    rest,
    routing,
    serve,
    until,
)


async def publish_all(store: str, *versions: AliasVersion) -> None:
    for revision in ("1", "2", "3"):
        await publish(store, "m", revision)
    for version in versions:
        await write_alias(Store.open(store), "prod", version)


async def pair(client: Any) -> admin_pb2.ShadowPair:
    (found,) = (await client.admin.ListShadows(admin_pb2.ListShadowsRequest())).pairs
    return found  # type: ignore[no-any-return]


async def settled(client: Any, requests: int) -> admin_pb2.ShadowPair:
    async with asyncio.timeout(30):
        while True:
            pairs = (await client.admin.ListShadows(admin_pb2.ListShadowsRequest())).pairs
            if pairs and sum((pairs[0].compared, pairs[0].dropped, pairs[0].failed, pairs[0].skipped)) == requests:
                return await pair(client)
            await asyncio.sleep(0.01)


async def test_an_alias_splits_by_key_and_switches_at_once(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store, AliasVersion(1, (Route("m@1", 1), Route("m@2", 1))))

    async def revision_of(key: str, **fields: Any) -> str:
        frames = await rest(client.generate("a", model="prod", sticky_key=key, **fields))
        return frames[0].accepted.revision

    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        keys = [secrets.token_hex(4) for _ in range(30)]
        first = [await revision_of(key) for key in keys]
        assert set(first) == {"1", "2"}
        assert [await revision_of(key) for key in keys] == first
        ids = [secrets.token_hex(4) for _ in range(30)]
        by_id = [await revision_of("", client_request_id=request_id) for request_id in ids]
        assert [await revision_of("", client_request_id=request_id) for request_id in ids] == by_id
        assert isinstance(await failure(client.generate(model="prod", sticky_key="k" * 257)), InvalidArgumentError)

        # requests that run on while the alias changes see one version or the other, and all of them an answer
        async def keep_asking() -> list[str]:
            return [await revision_of(secrets.token_hex(4)) for _ in range(40)]

        asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
        await write_alias(Store.open(store), "prod", AliasVersion(2, (Route("m@3"),)))
        seen = [revision for revisions in await asyncio.gather(*asking) for revision in revisions]
        assert set(seen) <= {"1", "2", "3"}
        await until(lambda: router.catalog.alias("prod") == AliasVersion(2, (Route("m@3"),)))
        assert {await revision_of(key) for key in keys} == {"3"}


async def test_a_stream_that_moves_keeps_its_revision(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store, AliasVersion(1, (Route("m@1"),)))

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        if submit.resume:
            worker.emit(submit.request_id, chunk("b", 1), *ending(worker, submit, 2))
        else:
            worker.emit(submit.request_id, chunk("a", 0))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        stream = asyncio.create_task(rest(client.generate(model="prod")))
        await until(lambda: any(f.output.started for k in router.fleet.links() for f in k.flights.values()))
        await write_alias(Store.open(store), "prod", AliasVersion(2, (Route("m@2"),)))
        await until(lambda: router.catalog.alias("prod") == AliasVersion(2, (Route("m@2"),)))
        worker.emit(worker.submits[0].request_id, error=DrainingError("shutting down"))
        frames = await stream
        later = client.generate(model="prod")
        assert (await later.read()).accepted.revision == "2"
        later.cancel()
    assert [frame.accepted.revision for frame in frames if frame.HasField("accepted")] == ["1"]
    assert "".join(frame.chunk.text for frame in frames) == "ab"
    assert [submit.revision for submit in worker.submits[:2]] == ["m@1", "m@1"]


async def test_a_route_that_was_deleted_gives_its_requests_to_the_others(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store, AliasVersion(1, (Route("m@9", 99), Route("m@2", 1))))
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        for _ in range(5):
            frames = await rest(client.generate("a", model="prod"))
            assert frames[0].accepted.revision == "2"


async def test_a_shadow_is_compared_and_not_seen(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store, AliasVersion(1, (Route("m@1"),), Shadow("m@2", 1.0)))

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        words = submit.request.text.split()
        differs = submit.revision == "m@2" and words[0] == "differ"
        for number, word in enumerate(words):
            worker.emit(submit.request_id, chunk(word, 99 if differs and number == 2 else number))
            await asyncio.sleep(0.001)
        worker.emit(submit.request_id, *ending(worker, submit, len(words)))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        for number, text in enumerate(["same a b c", "differ a b c", "same d"], start=1):
            sampling = pb.SamplingParams(n=1, temperature=0)
            frames = await rest(client.generate(text, model="prod", priority=3, sampling=sampling))
            assert "".join(f.chunk.text for f in frames if f.HasField("chunk")) == text.replace(" ", "")
            assert [f.accepted.revision for f in frames if f.HasField("accepted")] == ["1"]
            found = await settled(client, number)
        shadows = [submit for submit in worker.submits if submit.revision == "m@2"]
        assert len(shadows) == 3
        assert {submit.request.priority for submit in shadows} == {-(2**31)}
        primaries = [submit for submit in worker.submits if submit.revision == "m@1"]
        assert [s.seed for s in shadows] == [p.seed for p in primaries]
        assert (found.primary, found.shadow) == ("m@1", "m@2")
        assert (found.sampled, found.compared, found.identical, found.diverged) == (3, 3, 2, 1)
        assert found.tokens_agreed == 4 + 2 + 2
        assert found.agreement == pytest.approx(8 / 9)
        assert found.mean_divergence == 2
        assert router.rates.rates("m", asyncio.get_running_loop().time()).total == 3  # shadows are nobody's requests
        await until(lambda: not any(link.flights for link in router.fleet.links()))


async def test_a_shadow_that_fails_or_has_no_room_is_only_counted(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store, AliasVersion(1, (Route("m@1"),), Shadow("m@2", 1.0)))

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        if submit.revision == "m@2":
            worker.emit(submit.request_id, error=InternalError("broken"))
        else:
            await answer(worker, submit)

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        assert (await rest(client.generate(model="prod")))[-1].HasField("summary")
        assert (await settled(client, 1)).failed == 1
        worker.state.delta_bytes_used = worker.state.delta_bytes_budget  # the shadow's delta would push another out
        worker.report()
        await until(lambda: router.fleet.links()[0].view().delta_bytes_free == 0)
        assert (await rest(client.generate(model="prod")))[-1].HasField("summary")
        found = await settled(client, 2)
        assert (found.failed, found.skipped) == (1, 1)
        assert sum(submit.revision == "m@2" for submit in worker.submits) == 1


async def test_a_shadow_gives_its_place_up_to_requests(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store, AliasVersion(1, (Route("m@1"),), Shadow("m@2", 1.0)))
    worker.welcome.max_running = 2
    go = asyncio.Event()

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        if submit.revision == "m@2":
            worker.emit(submit.request_id, chunk("a", 0))
            await asyncio.Event().wait()  # never ends by itself
        await go.wait()
        await answer(worker, submit)

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        first = asyncio.create_task(rest(client.generate("a", model="prod")))
        await until(lambda: sum(submit.revision == "m@2" for submit in worker.submits) == 1)
        second = asyncio.create_task(rest(client.generate("b", model="m@3")))  # both places are taken
        await until(lambda: len(worker.aborts) == 1)
        assert worker.aborts[0].startswith(worker.submits[0].request_id.partition("/")[0] + "/shadow")
        go.set()
        for stream in (first, second):
            assert (await stream)[-1].HasField("summary")
        found = await settled(client, 1)
        assert (found.dropped, found.compared) == (1, 0)


async def test_a_client_that_leaves_takes_the_shadow_with_it(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store, AliasVersion(1, (Route("m@1"),), Shadow("m@2", 1.0)))

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, chunk("a", 0))
        await asyncio.Event().wait()

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        call = client.generate(model="prod")
        while not (await call.read()).HasField("chunk"):
            pass
        await until(lambda: len(worker.submits) == 2)
        call.cancel()
        await until(lambda: len(worker.aborts) == 2)
        assert (await settled(client, 1)).dropped == 1


class Deleting(ModelServiceServicer):
    """A compressor that deletes whatever it is told to."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def DeleteRevision(self, request: Any, context: Any) -> mpb.DeleteRevisionResponse:
        self.deleted.append(request.name)
        return mpb.DeleteRevisionResponse()


async def test_a_revision_with_streams_is_deleted_by_force_only(store: str, worker: ScriptedWorker) -> None:
    await publish_all(store)

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, chunk("a", 0))
        await asyncio.Event().wait()

    worker.script = script
    compressor = Deleting()
    name = [mpb.DESCRIPTOR.services_by_name["ModelService"].full_name]

    def add(server: Any) -> None:
        add_ModelServiceServicer_to_server(compressor, server)

    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serve(worker))
        host = await stack.enter_async_context(serving("127.0.0.1:0", add, name, grace_seconds=0))
        router, client = await stack.enter_async_context(
            routing(store, [f"127.0.0.1:{port}"], compressor=f"127.0.0.1:{host.port}")
        )
        await connected(router)
        call = client.generate(model="m@2")
        while not (await call.read()).HasField("chunk"):
            pass
        used, free = (mpb.DeleteRevisionRequest(name=f"models/m/revisions/{n}") for n in (2, 1))
        error = await call_failure(client.models.DeleteRevision(used))
        assert isinstance(error, PreconditionError)
        assert error.metadata == {"streams": "1"}
        await client.models.DeleteRevision(free)
        call.cancel()
        await until(lambda: not router.generations.streams)
        # a stream of another router, which the worker reports
        worker.state.residency.add(worker="w0", revision="m@2", tier=pb.TIER_DEVICE, in_use=2)
        worker.report()
        await until(lambda: len(router.fleet.links()[0].report.residency) == 1)
        error = await call_failure(client.models.DeleteRevision(used))
        assert error.metadata == {"streams": "2"}
        used.force = True
        await client.models.DeleteRevision(used)
        assert compressor.deleted == ["models/m/revisions/1", "models/m/revisions/2"]
