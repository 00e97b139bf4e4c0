"""Kills and stops services at random under load, and counts what came of every stream and every upload."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.reliability_cases.proxy import FaultProxy, fault_proxy
from benchmarks.reliability_cases.tiny import TEMPLATE, Tiny, pack
from deltaserve.client import AsyncClient
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import DeltaServeError
from deltaserve.v1 import models_pb2

ROOT = Path(__file__).parents[2]
TOKENS = 48
HANG_SECONDS = 120.0
MODELS = ("int4", "int2", "sign1")
PROMPTS = ("hello", "a b c", TEMPLATE)
KINDS = ("kill", "engine kill", "stop", "cut", "partition", "slow network")


@dataclass
class Service:
    """A service as a process of its own, in its own group, started again whenever it is gone."""

    name: str
    port: int
    command: list[str]
    log: Path
    proxy: FaultProxy | None = None
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the process; its log is appended to."""
        environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, cwd=ROOT, stdout=log, stderr=log, env=environ, process_group=0
            )

    async def ready(self) -> bool:
        """Whether it takes connections."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self) -> None:
        """Sends SIGKILL to all of its processes and waits for the first."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()


@dataclass
class Tally:
    """What happened.

    Attributes:
        faults: by service and kind.
        streams: by how they ended: "same tokens", or the class of the error with its gRPC status.
        uploads: acknowledged (committed and queued as a job).
        wrong: streams with other tokens, errors that are none of ours, hangs; acknowledged uploads that were lost.
    """

    faults: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    uploads: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        """Processes that got SIGKILL."""
        return sum(count for kind, count in self.faults.items() if "kill" in kind)


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, tiny: Tiny, workers: int = 2, router_flags: tuple[str, ...] = ()
) -> AsyncIterator[dict[str, Service]]:
    """Runs a compressor, workers and a router over one store; the router's port is `services["router"].port`."""
    names = ["compressor", *(f"worker-{number}" for number in range(1, workers + 1)), "router"]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    async with contextlib.AsyncExitStack() as proxies:
        seen = dict(ports)  # the ports under which the router knows the others: of proxies, for faults of the network
        services = {name: _service(name, ports, seen, folder, tiny) for name in names if name != "router"}
        for name, service in services.items():
            service.proxy = await proxies.enter_async_context(fault_proxy(f"127.0.0.1:{service.port}"))
            seen[name] = int(service.proxy.address.rpartition(":")[2])
        services["router"] = _service("router", ports, seen, folder, tiny)
        services["router"].command.extend(router_flags)
        async with _running(services):
            yield services


@contextlib.asynccontextmanager
async def _running(services: dict[str, Service]) -> AsyncIterator[None]:
    for service in services.values():
        await service.start()
    try:
        async with asyncio.timeout(180):
            for service in services.values():
                while not await service.ready():
                    await asyncio.sleep(0.2)
        yield
    finally:
        for service in services.values():
            await service.kill()


def _service(name: str, ports: dict[str, int], seen: dict[str, int], folder: Path, tiny: Tiny) -> Service:
    kind, port = name.partition("-")[0], ports[name]
    shared = ["--store", str(folder / "store"), "--listen", f"127.0.0.1:{port}"]
    flags = {
        "compressor": ["--base", str(tiny.base), "--work", str(folder / name), "--threads", "1", "--poll-seconds",
                       "0.2", "--lease-seconds", "10", "--max-attempts", "1000", "--disk-reserve-bytes", "0"],
        "worker": ["--base", str(tiny.base), "--name", name, "--cache", str(folder / name), "--threads", "1",
                   "--kv-bytes", str(8 << 20), "--notice-seconds", "0"],
        "router": ["--workers", ",".join(f"127.0.0.1:{seen[n]}" for n in seen if n.startswith("worker")),
                   "--compressor", f"127.0.0.1:{seen['compressor']}", "--catalog-seconds", "0.5"],
    }[kind]  # fmt: skip
    return Service(name, port, [sys.executable, "-m", f"services.{kind}", *shared, *flags], folder / f"{name}.log")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def publish(client: AsyncClient, folder: Path, model: str, extra: list[Path] | None = None) -> models_pb2.Job:
    """Uploads a packed delta and queues its publication."""
    return await client.create_job(model, await client.upload(folder, extra=extra or []))


async def under_fire(
    folder: Path, tiny: Tiny, rng: random.Random, kills: int, seconds: float, streams: int = 6, pace: float = 0.6
) -> Tally:
    """Runs load and faults until there were `kills` kills or `seconds` are over, then lets everything settle.

    Faults come `pace` seconds after one another on average. Every stream is greedy,
    and compared with what the same request said before anything was killed. Every upload is a
    delta of its own; once its job is queued it must be published in the end, with every byte right.
    """
    tally = Tally()
    async with cluster(folder, tiny) as services, AsyncClient(f"127.0.0.1:{services['router'].port}",
                                                              patience=240, timeout=60) as client:  # fmt: skip
        for codec in MODELS:
            job = await publish(client, pack(tiny.base, tiny.tuned, folder / "packed" / codec, codec), codec)
            await client.wait_for_job(job.job_id)
        said = {(m, p): await _tokens(client, m, p) for m in (*MODELS, "base") for p in PROMPTS}
        stop = asyncio.Event()
        load = [asyncio.create_task(_stream(client, said, random.Random(n), tally, stop)) for n in range(streams)]
        load.append(asyncio.create_task(_upload(client, folder, tally, stop)))
        await _shoot(services, rng, tally, kills, seconds, pace)
        stop.set()
        for service in services.values():
            await _started_again(service, tally)
        await asyncio.gather(*load)
        await _settled(client, folder, tally)
        for (model, prompt), tokens in said.items():
            if await _tokens(client, model, prompt) != tokens:
                tally.wrong.append(f"{model} says something else after all the kills")
    return tally


async def _shoot(
    services: dict[str, Service], rng: random.Random, tally: Tally, kills: int, seconds: float, pace: float
) -> None:
    end = time.monotonic() + seconds
    while tally.killed < kills and time.monotonic() < end:
        await asyncio.sleep(pace * rng.uniform(0.3, 1.7))
        for service in services.values():
            await _started_again(service, tally)
        ready = [service for service in services.values() if await service.ready()]
        if not ready:
            continue
        service, kind = rng.choice(ready), rng.choices(KINDS, (60, 15, 10, 5, 5, 5))[0]
        process = service.process
        assert process is not None
        if kind == "engine kill":
            children = psutil.Process(process.pid).children()
            engines = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
            if not engines:
                continue
            engines[0].kill()
        elif kind == "kill":
            await service.kill()
            await service.start()
        elif kind == "stop":
            os.killpg(process.pid, signal.SIGSTOP)
            await asyncio.sleep(rng.uniform(0.5, 5))
            os.killpg(process.pid, signal.SIGCONT)
        elif service.proxy is None:
            continue
        else:
            await _disturb(service.proxy, kind, rng)
        tally.faults[f"{service.name.partition('-')[0]} {kind}"] += 1


async def _started_again(service: Service, tally: Tally) -> None:
    """Starts a service that ended, as whatever runs services does; a worker ends when it loses too many engines."""
    assert service.process is not None
    if service.process.returncode is not None:
        tally.faults[f"{service.name.partition('-')[0]} ended by itself"] += 1
        await service.start()


async def _disturb(proxy: FaultProxy, kind: str, rng: random.Random) -> None:
    """Cuts connections, or for a while lets nothing through, or little."""
    if kind == "cut":
        proxy.cut()
        return
    proxy.silent, proxy.delay = kind == "partition", 0.0 if kind == "partition" else 0.02
    await asyncio.sleep(rng.uniform(0.5, 8))
    proxy.silent, proxy.delay = False, 0.0


async def _tokens(client: AsyncClient, model: str, prompt: str) -> list[int]:
    end = time.monotonic() + 180
    while True:
        try:
            done = await client.complete(model, prompt, temperature=0, max_tokens=TOKENS, ignore_eos=True, timeout=60)
        except DeltaServeError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(1)
            continue
        return list(done.token_ids[0])


async def _stream(
    client: AsyncClient, said: dict[tuple[str, str], list[int]], rng: random.Random, tally: Tally, stop: asyncio.Event
) -> None:
    while not stop.is_set():
        (model, prompt), expected = rng.choice(list(said.items()))
        try:
            async with asyncio.timeout(HANG_SECONDS):
                done = await client.complete(
                    model, prompt, temperature=0, max_tokens=TOKENS, ignore_eos=True, timeout=60
                )
        except TimeoutError:
            tally.wrong.append(f"a stream of {model} hung")
        except DeltaServeError as error:
            tally.streams[f"{error.code.name} {error.reason}"] += 1
            if error.code.name not in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"}:
                tally.wrong.append(f"a stream of {model} ended with {error.code.name}: {error}")
            await asyncio.sleep(0.5)
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            tally.wrong.append(f"a stream of {model} ended with {error!r}")
        else:
            same = list(done.token_ids[0]) == expected
            tally.streams["same tokens" if same else "other tokens"] += 1
            if not same:
                tally.wrong.append(f"{model} said other tokens: {done.token_ids[0]} instead of {expected}")


async def _upload(client: AsyncClient, folder: Path, tally: Tally, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        extra = folder / f"extra-{number}.jsonl"
        extra.write_bytes(os.urandom(3 << 20))  # makes it another upload, of several chunks
        try:
            job = await publish(client, folder / "packed" / "int4" / "out", f"up-{number}", [extra])
        except DeltaServeError as error:
            tally.streams[f"upload {error.code.name}"] += 1
            continue
        finally:
            extra.unlink()
        tally.uploads.append(job.job_id)


async def _settled(client: AsyncClient, folder: Path, tally: Tally) -> None:
    for job_id in tally.uploads:
        try:
            async with asyncio.timeout(180):
                job = await client.wait_for_job(job_id)
        except (TimeoutError, DeltaServeError) as error:
            tally.wrong.append(f"the acknowledged job {job_id} is lost: {error!r}")
            continue
        if job.state != models_pb2.JOB_STATE_SUCCEEDED:
            tally.wrong.append(f"the acknowledged job {job_id} ended as {job}")
            continue
        published = list((folder / "store" / "deltas" / job.spec.model).glob("*/manifest.json"))
        if len(published) != 1:
            tally.wrong.append(f"job {job_id} published {len(published)} revisions")
        for manifest in published:
            DeltaReader.open(manifest.parent)
