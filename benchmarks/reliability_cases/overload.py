"""More requests than can be served, clients that do not read, and load for long: goodput, rejections, memory."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.reliability_cases.kills import MODELS, Service, cluster, publish
from benchmarks.reliability_cases.tiny import Tiny, pack
from deltaserve.client import AsyncClient
from deltaserve.errors import DeltaServeError

TOKENS = 32
QUEUE = 32
MANY = 48  # streams at once that saturate one worker


@dataclass
class Load:
    """What came of requests.

    Attributes:
        done: seconds that each complete answer took.
        refused: seconds after which each refusal came.
        errors: by gRPC status, refusals included.
        seconds: of the whole.
        memory: bytes of each service at the beginning and the most while it ran.
    """

    done: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """Complete answers a second."""
        return len(self.done) / self.seconds


@dataclass
class Overload:
    """Capacity by `MANY` clients that wait for their answers, then arrivals at `factor` times that rate."""

    capacity: Load
    over: Load


async def overload(folder: Path, tiny: Tiny, factor: float, seconds: float) -> Overload:
    """Measures one worker behind a router with a queue of QUEUE requests."""
    async with (
        cluster(folder, tiny, workers=1, router_flags=("--max-queue", str(QUEUE))) as services,
        AsyncClient(f"127.0.0.1:{services['router'].port}", patience=60) as client,
    ):
        await prepare(client, folder, tiny)
        await _closed(client, Load(), MANY, seconds / 4)  # warm
        capacity = await _closed(client, Load(), MANY, seconds)
        over = Load()
        watch = asyncio.create_task(_watch(services, over))
        await _open(client, over, factor * capacity.goodput, seconds)
        watch.cancel()
        return Overload(capacity, over)


async def slow_consumers(folder: Path, tiny: Tiny, count: int, seconds: float) -> tuple[Load, Load]:
    """Measures readers alone, then beside `count` clients that open long streams and never read."""
    async with (
        cluster(folder, tiny, workers=1) as services,
        AsyncClient(f"127.0.0.1:{services['router'].port}", patience=60) as client,
    ):
        await prepare(client, folder, tiny)
        await _closed(client, Load(), 8, seconds / 4)
        alone = await _closed(client, Load(), 8, seconds)
        beside = Load()
        async with AsyncClient(f"127.0.0.1:{services['router'].port}") as other:
            streams = [other.generate("base", "a", max_tokens=1900, ignore_eos=True) for _ in range(count)]
            for stream in streams:
                await stream.__aenter__()
            watch = asyncio.create_task(_watch(services, beside))
            await _closed(client, beside, 8, seconds)
            watch.cancel()
            for stream in streams:
                await stream.__aexit__(None, None, None)
        return alone, beside


@dataclass
class Soak:
    """Samples of a long run: bytes and open files of each service, free KV blocks when idle at the end."""

    load: Load
    memory: dict[str, list[int]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)
    kv_free: tuple[int, int] = (0, 0)


async def soak(folder: Path, tiny: Tiny, share: float, seconds: float) -> Soak:
    """Loads one worker with `share` of its capacity, all models at random, and samples every few seconds."""
    async with (
        cluster(folder, tiny, workers=1) as services,
        AsyncClient(f"127.0.0.1:{services['router'].port}", patience=60) as client,
    ):
        await prepare(client, folder, tiny)
        capacity = await _closed(client, Load(), MANY, min(20.0, seconds / 6))
        found = Soak(Load())
        (worker,) = await client.workers()
        sampler = asyncio.create_task(_sample(services, found, seconds / 40))
        await _open(client, found.load, share * capacity.goodput, seconds)
        sampler.cancel()
        await asyncio.sleep(2)
        (after,) = await client.workers()
        found.kv_free = (worker.kv_blocks_total, after.kv_blocks_free)
        return found


async def prepare(client: AsyncClient, folder: Path, tiny: Tiny) -> None:
    """Publishes the models and asks each once."""
    for codec in MODELS:
        job = await publish(client, pack(tiny.base, tiny.tuned, folder / "packed" / codec, codec), codec)
        await client.wait_for_job(job.job_id)
        await client.complete(codec, "a", max_tokens=2)


async def _closed(client: AsyncClient, load: Load, clients: int, seconds: float) -> Load:
    end = time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < end:
            await _ask(client, load)

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(clients)))
    load.seconds = time.monotonic() - began
    return load


async def _open(client: AsyncClient, load: Load, rate: float, seconds: float) -> None:
    began, asked = time.monotonic(), set[asyncio.Task[None]]()
    due = began
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        asked.add(asyncio.create_task(_ask(client, load)))
        asked = {task for task in asked if not task.done()}
        due += random.expovariate(rate)
    await asyncio.wait(asked)
    load.seconds = time.monotonic() - began


async def _ask(client: AsyncClient, load: Load) -> None:
    began = time.monotonic()
    try:
        await client.complete(random.choice((*MODELS, "base")), "hello", max_tokens=TOKENS, ignore_eos=True, timeout=60)
    except DeltaServeError as error:
        load.errors[error.code.name] += 1
        if error.code.name in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}:
            load.refused.append(time.monotonic() - began)
    else:
        load.done.append(time.monotonic() - began)


async def _watch(services: dict[str, Service], load: Load) -> None:
    while True:
        for name, service in services.items():
            size = _memory(service)
            first, most = load.memory.get(name, (size, size))
            load.memory[name] = first, max(most, size)
        await asyncio.sleep(0.2)


async def _sample(services: dict[str, Service], found: Soak, every: float) -> None:
    while True:
        for name, service in services.items():
            found.memory.setdefault(name, []).append(_memory(service))
            found.files.setdefault(name, []).append(sum(one.num_fds() for one in _family(service)))
        await asyncio.sleep(every)


def _family(service: Service) -> list[psutil.Process]:
    assert service.process is not None
    first = psutil.Process(service.process.pid)
    return [first, *first.children(recursive=True)]


def _memory(service: Service) -> int:
    return sum(one.memory_info().rss for one in _family(service))


def percentile(values: list[float], share: float) -> float:
    """Returns a percentile; 0 of nothing."""
    if len(values) < 2:
        return sum(values)
    return statistics.quantiles(values, n=100)[round(100 * share) - 1]
