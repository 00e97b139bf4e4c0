"""Generations through a real router: frames, ends, and what the worker is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from deltaserve.errors import (
    AlreadyExistsError,
    DeadlineError,
    DrainingError,
    InvalidArgumentError,
    NotFoundError,
    SlowConsumerError,
    UnavailableError,
)
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb

from .conftest import (
    BASE_NAME,
    ScriptedWorker,
    chunk,
    connected,
    ending,
    failure,
    progress,
    publish,
    rest,
    routing,
    serve,
    until,
)


async def never(worker: ScriptedWorker, submit: wpb.Submit) -> None:
    worker.emit(submit.request_id, chunk("one", 1))
    await asyncio.Event().wait()


async def test_frames_come_in_the_order_of_the_proto(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, progress(pb.STAGE_QUEUED, position=2))
        await asyncio.sleep(0.05)
        for done in (10, 20):
            worker.emit(submit.request_id, progress(pb.STAGE_LOADING, bytes_done=done, bytes_total=20))
            await asyncio.sleep(0.05)
        worker.emit(submit.request_id, progress(pb.STAGE_PREFILL))
        worker.emit(submit.request_id, chunk("Hel", 1), chunk("lo", 2))
        worker.emit(submit.request_id, *ending(worker, submit, 2))

    worker.script = script
    name = await publish(store, "tuned", "3")
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        call = client.generate(model="tuned", client_request_id="my-id", sampling=pb.SamplingParams(seed=7, n=1))
        frames = await rest(call)
    kinds = [frame.WhichOneof("frame") for frame in frames]
    assert kinds[0] == "accepted"
    assert kinds[-2:] == ["finished", "summary"]
    assert frames[0].accepted == pb.Accepted(request_id="my-id", model="tuned", revision="3")
    stages = [frame.progress.stage for frame in frames if frame.HasField("progress")]
    assert stages == [pb.STAGE_QUEUED, pb.STAGE_LOADING, pb.STAGE_LOADING, pb.STAGE_PREFILL]
    assert "".join(frame.chunk.text for frame in frames) == "Hello"
    assert [t for frame in frames for t in frame.chunk.token_ids] == [1, 2]
    (submit,) = worker.submits
    assert submit.revision == name
    assert submit.seed == frames[-1].summary.seed == 7
    assert submit.request.client_request_id == "my-id"
    assert 18_000 < submit.remaining_ms <= 20_000
    assert submit.age.ToTimedelta().total_seconds() < 1
    assert worker.aborts == []


async def test_the_base_is_asked_for_by_its_served_name(store: str, worker: ScriptedWorker) -> None:
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        frames = await rest(client.generate("x y", timeout=None))
    assert frames[0].accepted.model == BASE_NAME
    assert frames[0].accepted.revision == ""
    assert frames[0].accepted.request_id
    assert worker.submits[0].revision == ""
    assert worker.submits[0].seed > 0
    assert not worker.submits[0].HasField("remaining_ms")
    assert worker.hellos == ["router"]


@pytest.mark.parametrize("way", ["cancel", "disconnect", "deadline"])
async def test_a_client_that_leaves_frees_its_worker(store: str, worker: ScriptedWorker, way: str) -> None:
    worker.script = never
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        call = client.generate(timeout=0.7 if way == "deadline" else 20, client_request_id="gone")
        while not (await call.read()).HasField("chunk"):
            pass
        if way == "cancel":
            call.cancel()
        elif way == "disconnect":
            await client.channel.close()
        else:
            assert isinstance(await failure(call), DeadlineError)
        await until(lambda: worker.aborts)
        assert worker.aborts == [worker.submits[0].request_id]
        await until(lambda: router.rates.rates(BASE_NAME, 0).in_flight == 0)


async def test_a_slow_client_is_paused_and_goes_on_when_it_reads(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        for number in range(1500):
            while worker.pauses and worker.pauses[-1][1]:
                await asyncio.sleep(0.01)
            worker.emit(submit.request_id, chunk("x" * 20_000, number))
            await asyncio.sleep(0.001)
        worker.emit(submit.request_id, *ending(worker, submit, 1500))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], buffer_bytes=1 << 20) as (router, client):
        await connected(router)
        call = client.generate(timeout=60)
        await call.read()
        await until(lambda: worker.pauses)
        assert worker.pauses == [(worker.submits[0].request_id, True)]
        frames = await rest(call)
    assert [t for frame in frames for t in frame.chunk.token_ids] == list(range(1500))
    assert sum(len(frame.chunk.text) for frame in frames) == 30_000_000
    assert frames[-1].HasField("summary")
    assert worker.pauses[-1][1] is False
    assert worker.aborts == []


async def test_a_client_that_does_not_read_is_cut_off(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        while True:  # obeys no pause: the memory bound must hold all the same
            worker.emit(submit.request_id, chunk("x" * 10_000, 1))
            await asyncio.sleep(0)

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], buffer_bytes=100_000) as (router, client):
        await connected(router)
        call = client.generate(timeout=60)
        await call.read()
        await until(lambda: worker.aborts)
        assert worker.aborts == [worker.submits[0].request_id]
        assert worker.pauses == [(worker.submits[0].request_id, True)]
        error = await failure(call)
    assert isinstance(error, SlowConsumerError)
    assert int(error.metadata["limit_bytes"]) == 100_000


async def test_patience_with_a_paused_client_ends(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        while not worker.pauses:
            worker.emit(submit.request_id, chunk("x" * 10_000, 1))
            await asyncio.sleep(0)

    worker.script = script
    async with (
        serve(worker) as port,
        routing(store, [f"127.0.0.1:{port}"], slow_consumer_seconds=0.3) as (router, client),
    ):
        await connected(router)
        call = client.generate(timeout=60)
        await call.read()
        await until(lambda: worker.aborts)
        assert isinstance(await failure(call), SlowConsumerError)


async def test_a_running_id_cannot_be_used_twice(store: str, worker: ScriptedWorker) -> None:
    worker.script = never
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        first = client.generate(client_request_id="same")
        await first.read()
        error = await failure(client.generate(client_request_id="same"))
        assert isinstance(error, AlreadyExistsError)
        assert error.metadata == {"client_request_id": "same"}
        first.cancel()
        await until(lambda: worker.aborts)
        again = client.generate(client_request_id="same")
        assert (await again.read()).accepted.request_id == "same"
        again.cancel()
    assert len({submit.request_id for submit in worker.submits}) == 2


async def test_unknown_models_are_not_found(store: str, worker: ScriptedWorker) -> None:
    await publish(store, "tuned")
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        for model, name in (("nope", "nope"), ("tuned@9", "tuned@9")):
            error = await failure(client.generate(model=model))
            assert isinstance(error, NotFoundError)
            assert (error.kind, error.name) == ("model", name)
            assert "tuned" in error.message
            assert BASE_NAME in error.message
    assert worker.submits == []


async def test_a_model_published_later_is_found_at_once(store: str, worker: ScriptedWorker) -> None:
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], catalog_seconds=60) as (router, client):
        await connected(router)
        assert isinstance(await failure(client.generate(model="late")), NotFoundError)
        await publish(store, "late")
        assert (await rest(client.generate(model="late")))[-1].HasField("summary")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": "UPPER/../case"}, "model"),
        ({"client_request_id": "x" * 129}, "client_request_id"),
        ({"client_request_id": "a\nb"}, "client_request_id"),
        ({"max_queue_wait": Duration(seconds=-1)}, "max_queue_wait"),
    ],
)
async def test_bad_requests_name_the_field(
    store: str, worker: ScriptedWorker, fields: dict[str, Any], field: str
) -> None:
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        error = await failure(client.generate(**fields))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field


async def test_a_request_without_prompt_is_refused(store: str) -> None:
    async with routing(store, []) as (_, client):
        error = await failure(client.inference.Generate(pb.GenerateRequest(model="x")))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "prompt"


async def test_the_workers_errors_arrive_as_they_were(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, error=InvalidArgumentError("top_p is 3", field="sampling.top_p", given=3))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        error = await failure(client.generate())
    assert isinstance(error, InvalidArgumentError)
    assert (error.message, error.field, error.metadata) == ("top_p is 3", "sampling.top_p", {"given": "3"})


async def test_draining_refuses_new_requests_and_finishes_old_ones(store: str, worker: ScriptedWorker) -> None:
    release = asyncio.Event()

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        await release.wait()
        worker.emit(submit.request_id, chunk("done", 1), *ending(worker, submit, 1))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], notice_seconds=0.3) as (router, client):
        await connected(router)
        running = client.generate()
        await running.read()
        draining = asyncio.create_task(router.drain(client.host))
        await asyncio.sleep(0.1)
        noticed = client.generate()  # still admitted while NOT_SERVING spreads
        await noticed.read()
        await asyncio.sleep(0.4)
        error = await failure(client.generate())
        assert isinstance(error, DrainingError)
        assert error.retry_seconds
        assert not draining.done()
        release.set()
        for call in (running, noticed):
            assert (await rest(call))[-1].HasField("summary")
        await asyncio.wait_for(draining, 2)


async def test_without_workers_requests_wait_and_then_fail(store: str) -> None:
    await publish(store, "tuned")
    async with routing(store, [], no_worker_seconds=0.2) as (_, client):
        assert isinstance(await failure(client.generate(model="perhaps-the-base")), UnavailableError)
        call = client.generate(model="tuned")
        assert (await call.read()).HasField("accepted")
        assert (await call.read()).progress.stage == pb.STAGE_QUEUED
        error = await failure(call)
    assert isinstance(error, UnavailableError)
    assert "0 known" in error.message
    assert error.retry_seconds == 0.2
