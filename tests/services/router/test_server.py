"""The router as a process: health, reflection, shutdown, and what it must not import."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from deltaserve.errors import DrainingError
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.status import error_from_rpc
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.inference_pb2_grpc import InferenceServiceStub

from .conftest import BASE_NAME, ScriptedWorker, chunk, ending, rest, serve

ROOT = Path(__file__).parents[3]


@contextlib.asynccontextmanager
async def router_process(*flags: str, code: str = "") -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    start = ("-c", code) if code else ("-m", "services.router")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DELTASERVE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *start, "--listen", address, *flags, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10, wait_for_ready=True)
    return int(answer.status)


async def serving_now(channel: grpc.aio.Channel) -> None:
    async with asyncio.timeout(20):
        while await health(channel) != health_pb2.HealthCheckResponse.SERVING:
            await asyncio.sleep(0.05)


async def test_health_reflection_and_unknown_services(store: str) -> None:
    async with router_process("--store", store) as (_, address), edge_channel(address) as channel:
        await serving_now(channel)
        for name in ("InferenceService", "AdminService", "ModelService"):
            assert await health(channel, f"deltaserve.v1.{name}") == health_pb2.HealthCheckResponse.SERVING
        for version in ("v1", "v1alpha"):
            call: Any = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )(timeout=5)
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            names = {s.name for s in (await call.read()).list_services_response.service}
            await call.write(
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="deltaserve.v1.InferenceService")
            )
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
            assert {f"deltaserve.v1.{n}" for n in ("InferenceService", "AdminService", "ModelService")} <= names
            call.cancel()


async def test_sigterm_drains_in_order(store: str, worker: ScriptedWorker) -> None:
    release = asyncio.Event()

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        await release.wait()
        worker.emit(submit.request_id, chunk("done", 1), *ending(worker, submit, 1))

    worker.script = script
    flags = ("--store", store, "--notice-seconds", "1", "--grace-seconds", "20")
    async with (
        serve(worker) as port,
        router_process(*flags, "--workers", f"127.0.0.1:{port}") as (process, address),
        edge_channel(address) as channel,
    ):
        await serving_now(channel)
        stub = InferenceServiceStub(channel)
        request = pb.GenerateRequest(model=BASE_NAME, text="x")
        running = await started(stub, request)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(0.8):
            while await health(channel) == health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.02)
        late = await started(stub, request)  # in the notice period
        async with asyncio.timeout(10):
            while not isinstance(error := await probe(stub, request), DrainingError):
                await asyncio.sleep(0.1)
        assert error.retry_seconds
        release.set()
        for call in (running, late):
            assert (await rest(call))[-1].HasField("summary")
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def started(stub: InferenceServiceStub, request: pb.GenerateRequest) -> Any:
    """Returns a call that was accepted, once the router knows the base's name."""
    while True:
        call: Any = stub.Generate(request, timeout=30)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.read()
            return call
        await asyncio.sleep(0.05)


async def probe(stub: InferenceServiceStub, request: pb.GenerateRequest) -> Exception | None:
    call: Any = stub.Generate(request, timeout=30)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    call.cancel()
    return None


async def test_a_started_router_has_no_torch(store: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from deltaserve import config\n"
        "from services.router import __main__\n"
        "from services.router.server import run\n"
        "from services.router.settings import RouterSettings\n"
        "async def main():\n"
        "    stop = asyncio.Event()\n"
        "    asyncio.get_running_loop().call_later(1, stop.set)\n"
        "    await run(config.load(RouterSettings, 'router'), stop)\n"
        "asyncio.run(main())\n"
        "print(*{'torch', 'cupy', 'transformers', 'numpy', 'safetensors'} & sys.modules.keys(), 'end')\n"
    )
    async with router_process("--store", store, "--notice-seconds", "0", code=code) as (process, _):
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert output.decode().split() == ["end"]


@pytest.mark.parametrize(
    ("flags", "status"),
    [((), 2), (("--store", "/nowhere", "--max-queue", "0"), 2), (("--store", "x://y"), 1), (("--nonsense", "1"), 2)],
)
async def test_bad_settings_end_the_process(flags: tuple[str, ...], status: int) -> None:
    async with router_process(*flags) as (process, _):
        assert await asyncio.wait_for(process.wait(), 30) == status


async def test_bad_worker_addresses_end_the_process(store: str) -> None:
    async with router_process("--store", store, "--workers", "nonsense") as (process, _):
        assert await asyncio.wait_for(process.wait(), 30) == 1
