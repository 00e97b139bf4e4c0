"""A worker without a model, in a process of its own: each step makes a token for one in `stride` of the requests.

A request of one token is answered at once, so that time to first token is the way's and not the step's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from deltaserve.rpc.servers import run_until_signal, serving
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

_SERVICE = wpb.DESCRIPTOR.services_by_name["WorkerService"].full_name
_CHUNK = pb.GenerateResponse(chunk=pb.Chunk(text=" word", token_ids=[7]))
_REPORT_SECONDS = 0.5


class Steps(WorkerServiceServicer):
    """See above; serves any number of routers."""

    def __init__(self, step_seconds: float, stride: int) -> None:
        self._step_seconds = step_seconds
        self._stride = stride

    async def Session(self, requests: Any, context: Any) -> None:  # type: ignore[override] # noqa: N802
        """Serves a router."""
        await anext(requests)
        welcome = wpb.Welcome(worker="w", base_fingerprint="f" * 64, base_model="base", max_running=100_000)
        await context.write(wpb.SessionResponse(welcome=welcome))
        left: dict[str, int] = {}
        outbox: asyncio.Queue[wpb.SessionResponse] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._read(requests, left, outbox)),
            asyncio.create_task(self._steps(left, outbox)),
        ]
        try:
            while True:
                await context.write(await outbox.get())
        finally:
            for task in tasks:
                task.cancel()

    async def _read(self, requests: Any, left: dict[str, int], outbox: asyncio.Queue[wpb.SessionResponse]) -> None:
        async for message in requests:
            if message.HasField("submit"):
                name, tokens = message.submit.request_id, message.submit.request.stopping.max_tokens
                if tokens > 1:
                    left[name] = tokens
                else:
                    outbox.put_nowait(wpb.SessionResponse(outputs=wpb.StepOutputs(outputs=[_output(name, 1)])))
            elif message.HasField("abort"):
                left.pop(message.abort.request_id, None)

    async def _steps(self, left: dict[str, int], outbox: asyncio.Queue[wpb.SessionResponse]) -> None:
        loop = asyncio.get_running_loop()
        due = reported = loop.time()
        step = 0
        while True:
            due = max(due + self._step_seconds, loop.time() - self._step_seconds)
            await asyncio.sleep(due - loop.time())
            if loop.time() >= reported:
                reported = loop.time() + _REPORT_SECONDS
                outbox.put_nowait(wpb.SessionResponse(state=wpb.StateReport(delta_bytes_budget=1)))
            step += 1
            turn = [name for name in left if hash(name) % self._stride == step % self._stride]
            if turn:
                outputs = [_output(name, left[name]) for name in turn]
                outbox.put_nowait(wpb.SessionResponse(outputs=wpb.StepOutputs(outputs=outputs)))
                for name in turn:
                    left[name] -= 1
                    if not left[name]:
                        del left[name]


def _output(name: str, left: int) -> wpb.RequestOutput:
    if left > 1:
        return wpb.RequestOutput(request_id=name, frames=[_CHUNK])
    finished = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH))
    return wpb.RequestOutput(
        request_id=name, frames=[_CHUNK, finished, pb.GenerateResponse(summary=pb.Summary(usage=pb.Usage()))]
    )


@contextlib.asynccontextmanager
async def stepping(address: str, step_seconds: float, stride: int) -> AsyncIterator[int]:
    """Runs the worker while the block runs; yields its port."""
    register = lambda server: add_WorkerServiceServicer_to_server(Steps(step_seconds, stride), server)  # noqa: E731
    async with serving(address, register, [_SERVICE], grace_seconds=0) as host:
        yield host.port


def main() -> None:
    """Serves until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--step-seconds", type=float, required=True)
    parser.add_argument("--stride", type=int, default=1)
    arguments = parser.parse_args()

    async def run(stop: asyncio.Event) -> int:
        async with stepping(arguments.listen, arguments.step_seconds, arguments.stride):
            await stop.wait()
        return 0

    raise SystemExit(run_until_signal(run))


if __name__ == "__main__":
    main()
