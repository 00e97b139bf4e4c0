"""CPU that the router spends on a token it passes on, over HTTP and over gRPC.

A router process stands between a worker that makes one token a step for every stream and clients in this process, which
read raw bytes (HTTP) or frames (gRPC). Counted is the router process's CPU time over the streams' tokens; requests are
counted by the same streams with one token each.

    .venv/bin/python -m benchmarks.http_cost --streams 32 --tokens 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import psutil

from benchmarks.hardware import describe
from deltaserve.client import AsyncClient
from deltaserve.errors import DeltaServeError
from deltaserve.rpc.servers import serving
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

STEP_SECONDS = 0.01
_SERVICE = wpb.DESCRIPTOR.services_by_name["WorkerService"].full_name


class Steps(WorkerServiceServicer):
    """A worker whose steps make a token for every request, as many as it asks for."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}

    async def Session(self, requests: Any, context: Any) -> None:  # type: ignore[override] # noqa: N802
        """Serves a router."""
        await anext(requests)
        welcome = wpb.Welcome(worker="w", base_fingerprint="f" * 64, base_model="base", max_running=10_000)
        await context.write(wpb.SessionResponse(welcome=welcome))
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                await asyncio.sleep(STEP_SECONDS)
                await context.write(wpb.SessionResponse(state=wpb.StateReport(delta_bytes_budget=1)))
                await context.write(wpb.SessionResponse(outputs=self._step()))
        finally:
            reading.cancel()

    async def _read(self, requests: Any) -> None:
        async for message in requests:
            if message.HasField("submit"):
                self._left[message.submit.request_id] = message.submit.request.stopping.max_tokens
            elif message.HasField("abort"):
                self._left.pop(message.abort.request_id, None)

    def _step(self) -> wpb.StepOutputs:
        outputs = wpb.StepOutputs()
        for name in list(self._left):
            self._left[name] -= 1
            frames = [pb.GenerateResponse(chunk=pb.Chunk(text=" word", token_ids=[7]))]
            if not self._left[name]:
                del self._left[name]
                frames.append(pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH)))
                frames.append(pb.GenerateResponse(summary=pb.Summary()))
            outputs.outputs.add(request_id=name, frames=frames)
        return outputs


async def over_http(address: str, tokens: int) -> None:
    """Reads one stream of server-sent events."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": "base", "prompt": "a", "max_tokens": tokens, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    assert answer.count(b" word") == tokens, answer[-500:]


async def measure(streams: int, tokens: int, process: psutil.Process, ask: Callable[[int], Awaitable[None]]) -> str:
    """Runs streams; returns CPU a request and a token."""
    costs = []
    for count in (1, tokens):
        before = process.cpu_times()
        await asyncio.gather(*(ask(count) for _ in range(streams)))
        after = process.cpu_times()
        costs.append((after.user + after.system - before.user - before.system) / streams)
    return f"{1e6 * costs[0]:11.0f} {1e6 * (costs[1] - costs[0]) / (tokens - 1):9.1f}"


async def run(streams: int, tokens: int) -> None:
    """Starts worker and router, and measures both ways of reaching them."""
    register = lambda server: add_WorkerServiceServicer_to_server(Steps(), server)  # noqa: E731
    with tempfile.TemporaryDirectory() as store:
        async with serving("127.0.0.1:0", register, [_SERVICE], grace_seconds=0) as host:
            grpc_address, http_address = _free(), _free()
            router = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.router", "--store", store, "--workers", f"127.0.0.1:{host.port}",
                "--listen", grpc_address, "--http-listen", http_address, "--log-level", "warning",
            )  # fmt: skip
            try:
                async with AsyncClient(grpc_address) as client:
                    await _until_serving(client)

                    async def over_grpc(count: int) -> None:
                        await client.complete("base", "a", max_tokens=count)

                    process = psutil.Process(router.pid)
                    for name, ask in (("HTTP", lambda n: over_http(http_address, n)), ("gRPC", over_grpc)):
                        await measure(streams, 10, process, ask)  # warm
                        print(f"{name:6} {await measure(streams, tokens, process, ask)}", flush=True)
            finally:
                router.kill()
                await router.wait()


async def _until_serving(client: AsyncClient) -> None:
    while True:
        try:
            await client.complete("base", "a", max_tokens=1)
            return
        except (DeltaServeError, grpc.RpcError):
            await asyncio.sleep(0.1)


def _free() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32, help="streams at a time")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a stream")
    arguments = parser.parse_args()
    print(f"# {describe()}; {arguments.streams} streams of {arguments.tokens} tokens, CPU of the router in us")
    print(f"{'':6} {'a request':>11} {'a token':>9}")
    asyncio.run(run(arguments.streams, arguments.tokens))


if __name__ == "__main__":
    main()
