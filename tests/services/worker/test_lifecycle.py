"""Starting, losing the engine, and leaving: real processes and signals."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from deltaserve.errors import DrainingError, WorkerLostError
from deltaserve.rpc.channels import internal_channel
from deltaserve.rpc.status import error_from_rpc
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.worker_pb2_grpc import WorkerServiceStub
from tests.services.worker.conftest import StartWorker, WorkerProcess

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
LONG = {"max_tokens": 2000}


async def test_a_killed_engine_ends_its_requests_and_is_replaced(
    start_worker: StartWorker, connect: Any, ask: Any
) -> None:
    worker = start_worker(engine_restarts=1)
    assert await _refusals_until_serving(worker) > 0
    assert worker.health() == SERVING
    peer = await connect(worker)
    names = [await peer.submit(ask(stopping=LONG), revision) for revision in ("", "red@1", "green@1")]
    for name in names:
        await peer.wait(name, lambda s: len(s.tokens()) > 4)
    killed = time.monotonic()
    worker.engine().kill()
    for name in names:
        stream = await peer.wait(name)
        assert isinstance(stream.error, WorkerLostError)
        assert int(stream.error.metadata["tokens_emitted"]) == len(stream.tokens())
    assert time.monotonic() - killed < 2
    await asyncio.wait_for(peer._reading, 5)  # the session ends, so that its router looks elsewhere
    assert peer.ended is not None
    assert peer.ended.code() == grpc.StatusCode.UNAVAILABLE
    assert worker.health() == NOT_SERVING
    await asyncio.to_thread(worker.wait_until_serving)
    again = await connect(worker)
    assert len((await again.generate(ask(), "red@1")).tokens()) == 16

    worker.engine().kill()  # the second time is once too often
    assert await asyncio.to_thread(worker.process.wait, 20) == 1
    assert "died 2 times; giving up" in worker.log.read_text()


@pytest.mark.timeout(600)
async def test_a_lost_rank_ends_the_requests_and_the_engine_is_replaced(
    start_worker: StartWorker, connect: Any, ask: Any
) -> None:
    worker = start_worker(engine_restarts=1, tensor_parallel=2)
    await asyncio.to_thread(worker.wait_until_serving, 300)
    peer = await connect(worker)
    expected = (await peer.generate(ask(), "red@1")).tokens()
    names = [await peer.submit(ask(stopping=LONG), revision) for revision in ("", "red@1", "green@1")]
    for name in names:
        await peer.wait(name, lambda s: len(s.tokens()) > 4)
    engine = worker.engine()
    (rank,) = [child for child in engine.children() if "spawn_main" in " ".join(child.cmdline())]
    rank.kill()
    for name in names:
        assert isinstance((await peer.wait(name)).error, WorkerLostError)
    assert worker.health() == NOT_SERVING
    await asyncio.to_thread(worker.wait_until_serving, 300)
    assert worker.engine().pid != engine.pid
    again = await connect(worker)
    assert (await again.generate(ask(), "red@1")).tokens() == expected
    ranks = worker.engine().children()
    assert await asyncio.to_thread(worker.stop) == 0
    assert not psutil.wait_procs(ranks, timeout=30)[1]


async def test_drain(start_worker: StartWorker, connect: Any, ask: Any) -> None:
    worker = start_worker(notice_seconds=1.0, grace_seconds=20.0)
    await asyncio.to_thread(worker.wait_until_serving)
    engine, peer = worker.engine(), await connect(worker)
    running = await peer.submit(ask(stopping=LONG))
    await peer.wait(running, lambda s: len(s.tokens()) > 4)
    worker.process.send_signal(signal.SIGTERM)
    await peer.wait_state(lambda s: s.draining, seconds=0.9)
    assert worker.health() == NOT_SERVING
    admitted = await peer.submit(ask())  # until routers have taken notice
    assert len((await peer.wait(admitted)).tokens()) == 16
    await asyncio.sleep(1.1)
    if not peer.streams[running].done:
        refused = await peer.fail(ask())
        assert isinstance(refused, DrainingError)
        assert refused.retry_seconds is not None
    assert len((await peer.wait(running)).tokens()) == 2000
    await asyncio.wait_for(peer._reading, 5)
    assert peer.ended is None
    assert await asyncio.to_thread(worker.process.wait, 20) == 0
    assert not engine.is_running()


async def test_grace_is_finite(start_worker: StartWorker, connect: Any, ask: Any) -> None:
    worker = start_worker(notice_seconds=0.0, grace_seconds=0.3)
    await asyncio.to_thread(worker.wait_until_serving)
    peer = await connect(worker)
    names = [await peer.submit(ask(stopping=LONG)) for _ in range(20)]
    await peer.wait(names[-1], lambda s: len(s.tokens()) > 2)
    worker.process.send_signal(signal.SIGTERM)
    stream = await peer.wait(names[-1])
    assert isinstance(stream.error, DrainingError)
    assert int(stream.error.metadata["tokens_emitted"]) == len(stream.tokens())
    assert await asyncio.to_thread(worker.process.wait, 20) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"base": "/nonexistent"}, "cannot start"),
        ({"kv_bytes": 1}, "the worker ends"),
        ({"max_running": 0}, "max_running is 0; expected at least 1"),
        ({"no_such_setting": 1}, "unrecognized arguments"),
    ],
)
def test_a_worker_that_cannot_start_says_why(start_worker: StartWorker, flags: dict[str, Any], message: str) -> None:
    worker = start_worker(**flags)
    assert worker.process.wait(60) != 0
    assert message in worker.log.read_text()


async def _refusals_until_serving(worker: WorkerProcess) -> int:
    """Opens sessions until one is welcome; returns how many were refused because the engine was starting."""
    refusals = 0
    async with internal_channel(worker.address) as channel, asyncio.timeout(60):
        while True:
            call: Any = WorkerServiceStub(channel).Session()
            try:
                await call.write(wpb.SessionRequest(hello=wpb.Hello(router="early")))
                if (await call.read()).HasField("welcome"):
                    return refusals
            except grpc.aio.AioRpcError as error:
                refusals += "is starting" in error_from_rpc(error).message
            finally:
                call.cancel()
            await asyncio.sleep(0.05)


def test_the_front_has_no_torch() -> None:
    code = "import sys, services.worker.__main__; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
