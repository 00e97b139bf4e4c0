"""Workers that come, go, freeze, fill up and refuse, behind a real router."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from deltaserve.catalog import PIN, write_setting
from deltaserve.errors import (
    BaseMismatchError,
    DeadlineError,
    DrainingError,
    InvalidArgumentError,
    UnavailableError,
    WorkerLostError,
)
from deltaserve.store import Store
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb

from .conftest import (
    BASE_NAME,
    ScriptedWorker,
    answer,
    call_failure,
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


@contextlib.asynccontextmanager
async def worker_process(name: str, port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    path = str(Path(__file__).with_name("worker_process.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, path, name, str(port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process, int(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def silence(worker: ScriptedWorker, submit: wpb.Submit) -> None:
    await asyncio.Event().wait()


async def first_chunk(call: object) -> pb.Chunk:
    while True:
        frame = await call.read()  # type: ignore[attr-defined]
        if frame.HasField("chunk"):
            return frame.chunk  # type: ignore[no-any-return]


@pytest.mark.parametrize(("how", "seconds"), [(signal.SIGKILL, 1.5), (signal.SIGSTOP, 4.0)])
async def test_a_lost_worker_is_told_with_the_tokens_so_far(store: str, how: signal.Signals, seconds: float) -> None:
    async with (
        worker_process("w0") as (process, port),
        routing(store, [f"127.0.0.1:{port}"], no_worker_seconds=0.2) as (router, client),
    ):
        await connected(router)
        call = client.generate()
        assert (await first_chunk(call)).text == "w0"
        began = time.monotonic()
        process.send_signal(how)
        error = await failure(call)
        assert time.monotonic() - began < seconds
        assert isinstance(error, WorkerLostError)
        assert error.metadata == {"tokens_emitted": "1", "worker": "w0"}
        assert error.retry_seconds is not None
        if how is signal.SIGKILL:  # it comes back at the same address
            async with worker_process("w1", port):
                await connected(router)
                assert (await first_chunk(client.generate())).text == "w1"


async def test_a_stream_goes_on_where_its_worker_was_lost(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, progress(pb.STAGE_LOADING), progress(pb.STAGE_PREFILL))
        worker.emit(submit.request_id, chunk(" more", 2), chunk("x", 7, index=1), *ending(worker, submit, 3))

    worker.script = script
    worker.state.draining = True  # not yet
    async with (
        worker_process("a") as (process, first),
        serve(worker) as second,
        routing(store, [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]) as (router, client),
    ):
        await connected(router, 2)
        call = client.generate(sampling=pb.SamplingParams(n=2), max_queue_wait=Duration(seconds=5))
        assert await first_chunk(call) == chunk("a", 1).chunk
        worker.state.draining = False
        process.kill()
        frames = await rest(call)
    (submit,) = worker.submits
    assert [list(tokens.ids) for tokens in submit.resume] == [[1]]
    assert submit.seed > 0
    assert not submit.request.HasField("max_queue_wait")
    assert [f.WhichOneof("frame") for f in frames] == ["chunk", "chunk", "finished", "summary"]
    assert frames[-1].summary.worker == "w0"


async def test_a_request_without_output_goes_to_another_worker_unseen(store: str, worker: ScriptedWorker) -> None:
    worker.state.draining = True  # not yet
    async with (
        worker_process("a") as (process, first),
        serve(worker) as second,
        routing(store, [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]) as (router, client),
    ):
        await connected(router, 2)
        call = client.generate("silence")
        await until(lambda: any(link.flights for link in router.fleet.links()))
        worker.state.draining = False
        process.kill()
        frames = await rest(call)
    assert frames[-1].summary.worker == "w0"
    assert sum(frame.HasField("accepted") for frame in frames) == 1


async def test_a_request_that_outlives_three_workers_is_given_up(store: str, worker: ScriptedWorker) -> None:
    worker.script = silence
    async with serve(worker) as port:
        pass  # only to have a free port
    async with routing(store, [f"127.0.0.1:{port}"], no_worker_seconds=60) as (router, client):
        await publish(store, "m")
        call = client.generate(model="m", timeout=60)
        for attempts in (1, 2, 3):
            async with serve(worker, port):
                await until(functools.partial(_submitted, worker, attempts))
            await until(lambda: not router.fleet.links()[0].connected)
        error = await failure(call)
    assert isinstance(error, WorkerLostError)
    assert error.metadata["tokens_emitted"] == "0"


def _submitted(worker: ScriptedWorker, requests: int) -> bool:
    return len(worker.submits) == requests


async def test_requests_go_where_the_delta_is(store: str) -> None:
    workers = [ScriptedWorker("a"), ScriptedWorker("b")]
    for worker, model in zip(workers, ("x", "y"), strict=True):
        name = await publish(store, model)
        worker.state.residency.add(worker=worker.welcome.worker, revision=name, tier=pb.TIER_DEVICE, bytes=1000)
    async with (
        serve(workers[0]) as one,
        serve(workers[1]) as two,
        routing(store, [f"127.0.0.1:{one}", f"127.0.0.1:{two}"]) as (router, client),
    ):
        await connected(router, 2)
        calls = [client.generate(model=model) for model in "xyxyxy"]
        ends = [(await rest(call))[-1].summary.worker for call in calls]
        assert ends == ["a", "b"] * 3
        listing = await client.inference.ListModels(pb.ListModelsRequest())
    assert [s.revision for s in workers[0].submits] == ["x@1"] * 3
    assert {m.model: [r.worker for r in m.residency] for m in listing.models} == {BASE_NAME: [], "x": ["a"], "y": ["b"]}


async def test_requests_beyond_the_backlog_wait_here_by_priority_with_their_position(
    store: str, worker: ScriptedWorker
) -> None:
    release = asyncio.Event()

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        await release.wait()
        await answer(worker, submit)

    worker.script = script
    worker.welcome.max_running = 1
    async with (
        serve(worker) as port,
        routing(store, [f"127.0.0.1:{port}"], worker_backlog=0, max_queue=3) as (router, client),
    ):
        await connected(router)
        calls = []
        for name, priority in (("running", 0), ("second", 0), ("third", 0), ("urgent", 5)):
            calls.append(client.generate(client_request_id=name, priority=priority))
            assert (await calls[-1].read()).HasField("accepted")
        assert [(await call.read()).progress.position for call in calls[1:]] == [0, 1, 0]
        assert (await calls[1].read()).progress.position == 1  # the urgent one passed it
        error = await failure(client.generate())
        assert isinstance(error, UnavailableError)
        assert error.retry_seconds
        assert "3 requests are waiting (limit 3)" in error.message
        calls[2].cancel()
        await until(lambda: router.dispatcher.waiting == 2)
        release.set()
        for call in (calls[0], calls[1], calls[3]):
            assert (await rest(call))[-1].HasField("summary")
    assert [s.request.client_request_id for s in worker.submits] == ["running", "urgent", "second"]
    assert worker.aborts == []


async def test_max_queue_wait_holds_here_and_on_the_worker(store: str, worker: ScriptedWorker) -> None:
    worker.script = silence
    worker.welcome.max_running = 1
    limit = Duration(nanos=300_000_000)
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], worker_backlog=0) as (router, client):
        await connected(router)
        calls = [client.generate(max_queue_wait=limit) for _ in range(2)]
        for call in calls:
            error = await failure(call)
            assert isinstance(error, DeadlineError)
            assert error.metadata["max_queue_wait_seconds"] == "0.3"
        await until(lambda: worker.aborts)


async def test_max_queue_wait_ends_with_the_first_prefill(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, progress(pb.STAGE_PREFILL))
        await asyncio.sleep(0.5)
        worker.emit(submit.request_id, chunk("x", 1), *ending(worker, submit, 1))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        assert (await rest(client.generate(max_queue_wait=Duration(nanos=200_000_000))))[-1].HasField("summary")


async def test_a_worker_that_drains_hands_requests_to_another(store: str) -> None:
    async def refuse(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, error=DrainingError("shutting down"))

    one, two = ScriptedWorker("a"), ScriptedWorker("b")
    one.script = refuse
    one.state.residency.add(worker="a", revision=await publish(store, "m"), tier=pb.TIER_DEVICE)
    async with (
        serve(one) as first,
        serve(two) as second,
        routing(store, [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]) as (router, client),
    ):
        await connected(router, 2)
        assert (await rest(client.generate(model="m")))[-1].summary.worker == "b"
        one.state.draining = True
        await until(lambda: any(k.report.draining for k in router.fleet.links()))
        assert (await rest(client.generate(model="m")))[-1].summary.worker == "b"
    assert len(one.submits) == 1


async def test_another_base_is_a_failed_precondition(store: str, worker: ScriptedWorker) -> None:
    await publish(store, "foreign", base="cd" * 32)
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        error = await failure(client.generate(model="foreign"))
    assert isinstance(error, BaseMismatchError)
    assert "cd" * 32 in error.message
    assert "ab" * 32 in error.message


async def test_tokenize_asks_a_worker_with_the_resolved_revision(store: str, worker: ScriptedWorker) -> None:
    await publish(store, "m", "4")
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        answer = await client.inference.Tokenize(pb.TokenizeRequest(model="m", text="a bcd"), timeout=5)
        assert (list(answer.token_ids), answer.context_length) == ([1, 3], 99)
        error = await call_failure(client.inference.Tokenize(pb.TokenizeRequest(model="m"), timeout=5))
    assert worker.tokenized[0].revision == "m@4"
    assert isinstance(error, InvalidArgumentError)


async def test_pins_reach_workers_and_are_taken_back(store: str, worker: ScriptedWorker) -> None:
    await publish(store, "m")
    await publish(store, "foreign", base="cd" * 32)
    for model in ("m", "foreign"):
        await write_setting(Store.open(store), PIN, model, {"pinned": True})
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, _):
        await connected(router)
        await until(lambda: worker.places)
        await write_setting(Store.open(store), PIN, "m", {"pinned": False})
        await until(lambda: len(worker.places) == 2)
    first, second = (wpb.Place(revision="m@1", tier=pb.TIER_DEVICE, pinned=pinned) for pinned in (True, False))
    assert worker.places == [first, second]
