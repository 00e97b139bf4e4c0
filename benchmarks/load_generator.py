"""What `deltaserve bench` itself can do: its CPU a request and a token, and the highest rate at which it is never late.

A trivial server in a process of its own sends the first token at once and another each 10 ms, a frame each. CPU is that
of the generator process. The rate is raised by a quarter until a tenth of the requests are sent over 10 ms late, 90 %
of the core are used, or answers take longer than their tokens. Other work on the machine lowers it, so the load average
is told; with gRPC the server, which is Python too, may be full first.

    python -m benchmarks.load_generator
    python -m benchmarks.load_generator --processes 1,2 --tokens 100
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.hardware import describe
from deltaserve.bench.figures import Objectives
from deltaserve.bench.lengths import parse_lengths
from deltaserve.bench.loop import run_loop
from deltaserve.bench.percentiles import Distribution
from deltaserve.bench.processes import Target, run
from deltaserve.bench.summary import LATE_SECONDS, Summary, summarise
from deltaserve.bench.workload import Workload, plan
from deltaserve.rpc.servers import serving
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server

TOKEN_SECONDS = 0.01
_SECONDS = 4.0
_STEP = 1.25
_TRIES = 2  # other work on the machine makes requests late too


class Steady(InferenceServiceServicer):
    """Sends a token each TOKEN_SECONDS."""

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Tells of a base."""
        return pb.ListModelsResponse(models=[pb.Model(model="base", base=True)])

    async def Generate(self, request: Any, context: Any) -> None:  # type: ignore[override] # noqa: N802
        """Sends as many tokens as are asked for."""
        tokens = request.stopping.max_tokens
        await context.write(pb.GenerateResponse(accepted=pb.Accepted(model="base")))
        for place in range(tokens):
            if place:
                await asyncio.sleep(TOKEN_SECONDS)
            await context.write(pb.GenerateResponse(chunk=pb.Chunk(text=" word", token_ids=[7])))
        await context.write(pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH)))
        usage = pb.Usage(prompt_tokens=1, completion_tokens=tokens)
        await context.write(pb.GenerateResponse(summary=pb.Summary(usage=usage)))


class SteadyHttp(asyncio.Protocol):
    """The same over HTTP, on connections that are kept."""

    def __init__(self) -> None:
        self._data = b""
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers when a request is whole."""
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(next((line[15:] for line in head.splitlines() if line.startswith(b"content-length:")), b"0"))
        if len(rest) < length:
            return
        self._data = rest[length:]
        self._answering = asyncio.create_task(self._answer(json.loads(rest[:length])["max_tokens"]))

    async def _answer(self, tokens: int) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for place in range(tokens):
            if place:
                await asyncio.sleep(TOKEN_SECONDS)
            write(_WORD)
        usage = _chunk({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": tokens}})
        write(_ENDING + usage + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _chunk(event: dict[str, Any]) -> bytes:
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


_WORD = _chunk({"id": "x", "model": "base", "choices": [{"index": 0, "text": " word", "finish_reason": None}]})
_ENDING = _chunk({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})


async def serve(protocol: str) -> None:
    """Serves for ever; tells its port."""
    if protocol == "HTTP":
        server = await asyncio.get_running_loop().create_server(SteadyHttp, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()
    register = lambda server: add_InferenceServiceServicer_to_server(Steady(), server)  # noqa: E731
    name = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
    async with serving("127.0.0.1:0", register, [name], grace_seconds=0) as host:
        print(host.port, flush=True)
        await asyncio.Event().wait()


@asynccontextmanager
async def served(protocol: str) -> AsyncIterator[Target]:
    """Starts a server; yields where it is."""
    command = [sys.executable, "-m", "benchmarks.load_generator", "--serve", protocol]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        address = f"127.0.0.1:{int(await process.stdout.readline())}"
        yield Target(address, f"http://{address}" if protocol == "HTTP" else "", 30.0)
    finally:
        process.kill()
        await process.wait()


async def send(target: Target, rate: float, tokens: int, processes: int, seconds: float = _SECONDS) -> Summary:
    """Runs one load."""
    load = Workload(
        models=("base",), rate=rate, seconds=seconds, prompt_tokens=parse_lengths("64", ""),
        output_tokens=parse_lengths(str(tokens), ""),
    )  # fmt: skip
    shares = await run(target, plan(load), processes)
    records = [record for share in shares for record in share.records]
    return summarise(records, Objectives(), warm_up=0.5, cpu=[share.cpu for share in shares], settings={})


async def cost(target: Target, tokens: int) -> tuple[float, float]:
    """Returns CPU seconds of a request of one token, and of each token more."""
    found = []
    for count, rate in ((1, 100.0), (tokens, 1500.0 / tokens)):
        summary = await send(target, rate, count, 1)
        sent = sum(summary.timeline.due)
        found.append(summary.generator.cpu * summary.timeline.seconds * len(summary.timeline.due) / sent)
    return found[0], (found[1] - found[0]) / (tokens - 1)


async def highest(target: Target, tokens: int, processes: int, cpu: float) -> tuple[float, Summary | None]:
    """Returns the highest rate at which the generator kept up, and the run at it; begins at half a core of `cpu` s."""
    rate, held = 0.5 * processes / cpu, None
    while rate * cpu > 0.01:
        for _ in range(_TRIES):
            summary = await send(target, rate, tokens, processes)
            if _held(summary, tokens):
                held = rate, summary
                rate *= _STEP
                break
        else:
            if held is not None:
                return held
            rate /= 2
    return 0.0, None


def _held(summary: Summary, tokens: int) -> bool:
    """Whether sends were on time and answers were read as they came.

    A generator that is too slow is late with nearly all requests soon, a machine that is busy with some. When answers
    take longer than their tokens do, the generator or the server is full; both are what cannot be measured here.
    """
    generator, took = summary.generator, summary.total.e2e.p50 or 0.0
    on_time = generator.cpu < 0.9 and (generator.late.p90 or 0.0) <= LATE_SECONDS
    return on_time and not summary.total.errors and took <= 1.25 * TOKEN_SECONDS * (tokens - 1) + 0.05


async def measure(tokens: list[int], processes: list[int]) -> None:
    """Prints the tables."""
    for protocol in ("gRPC", "HTTP"):
        async with served(protocol) as target:
            await send(target, 50.0, 10, 1, 1.0)  # warm
            request, token = await cost(target, 100)
            print(f"{protocol}: {1e6 * request:.0f} us CPU a request, {1e6 * token:.0f} us a token", end="; ")
            print(f"a core is {1 / request:,.0f} requests/s, or {1 / token:,.0f} tokens/s of long answers")
            print(
                f"{'tokens':>8}{'processes':>11}{'requests/s':>12}{'tokens/s':>10}{'core':>7}{'late p50, p99 ms':>18}"
            )
            for length in tokens:
                for count in processes:
                    rate, summary = await highest(target, length, count, request + (length - 1) * token)
                    late = summary.generator.late if summary else Distribution()
                    told = f"{1000 * (late.p50 or 0.0):.1f}, {1000 * (late.p99 or 0.0):.1f}"
                    cpu, output = (summary.generator.cpu, summary.total.output_rate) if summary else (0.0, 0.0)
                    print(f"{length:8}{count:11}{rate:12.0f}{output:10.0f}{cpu:7.0%}{told:>18}", flush=True)


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,100", help="tokens of an answer, several after commas")
    parser.add_argument("--processes", default="1", help="generator processes, several after commas")
    parser.add_argument("--serve", choices=["gRPC", "HTTP"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run_loop(serve(options.serve))
        return
    print(f"# {describe()}; load average {os.getloadavg()[0]:.1f}")
    tokens, processes = ([int(n) for n in text.split(",")] for text in (options.tokens, options.processes))
    run_loop(measure(tokens, processes))


if __name__ == "__main__":
    main()
