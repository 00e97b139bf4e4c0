"""Routers, worker and clients as processes, each on the cores it is given, and what the routers use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_SECONDS = 60.0
_SETTLE_SECONDS = 3.0


def cores() -> tuple[set[int], set[int]]:
    """Returns the cores for routers (one for each) and those for everything else; the same where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return ({usable[0]}, set(usable[1:])) if len(usable) > 1 else (set(usable), set(usable))


def free() -> str:
    """Returns a free address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def start(*arguments: str, on: set[int], **options: Any) -> Process:
    """Starts a Python module on some cores."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, **options)
    os.sched_setaffinity(process.pid, on)
    return process


@dataclass
class System:
    """What runs.

    Attributes:
        grpc: address of the routers.
        http: address of their HTTP API.
        worker: address of the worker.
        routers: their processes.
    """

    grpc: str
    http: str
    worker: str
    routers: list[Process]

    async def ask(self, way: str, streams: int, tokens: int, *more: str) -> dict[str, Any]:
        """Runs clients to their end; returns what they saw."""
        return await told(await self.begin(way, streams, tokens, *more))

    async def begin(self, way: str, streams: int, tokens: int, *more: str) -> Process:
        """Starts clients."""
        address = self.http if way == "http" else self.grpc
        flags = ("--way", way, "--address", address, "--streams", str(streams), "--tokens", str(tokens), *more)
        return await start("benchmarks.router_load.clients", *flags, on=cores()[1], stdout=PIPE)

    def cpu(self) -> float:
        """Returns CPU seconds of the routers so far, to the microsecond."""
        return sum(self.cpus())

    def cpus(self) -> list[float]:
        """Returns the same router by router."""
        return [_cpu(router.pid) for router in self.routers]

    def resident(self) -> int:
        """Returns bytes of memory of the routers."""
        pages = sum(int(Path(f"/proc/{r.pid}/statm").read_text().split()[1]) for r in self.routers)
        return pages * os.sysconf("SC_PAGE_SIZE")


async def told(clients: Process) -> dict[str, Any]:
    """Returns what clients saw, once they have ended."""
    output, _ = await clients.communicate()
    if clients.returncode:
        raise RuntimeError(f"the clients ended with status {clients.returncode}")
    seen: dict[str, Any] = json.loads(output)
    return seen


@contextlib.asynccontextmanager
async def running(step_seconds: float, routers: int = 1, stride: int = 1) -> AsyncIterator[System]:
    """Runs a worker and routers while the block runs."""
    mine, others = cores()
    with tempfile.TemporaryDirectory() as store:
        system = System(free(), free(), free(), [])
        flags = ("--listen", system.worker, "--step-seconds", str(step_seconds), "--stride", str(stride))
        processes = [await start("benchmarks.router_load.worker", *flags, on=others)]
        try:
            for number in range(routers):
                core = mine if routers == 1 else {sorted(os.sched_getaffinity(0))[number % os.cpu_count()]}  # type: ignore[operator]
                system.routers.append(await _router(system, store, core, routers > 1))
            processes += system.routers
            await asyncio.gather(*map(_listening, (system.worker, system.grpc, system.http)))
            await asyncio.sleep(_SETTLE_SECONDS)  # sessions with the worker; all routers of a shared port
            for _ in range(routers * 4):
                await system.ask("grpc", 1, 1, "--channels", "1")
            await system.ask("grpc", 32, 20 if stride == 1 else 1)
            yield system
        finally:
            for process in processes:
                process.kill()
            await asyncio.gather(*(process.wait() for process in processes))


async def _router(system: System, store: str, on: set[int], shared: bool) -> Process:
    flags = [
        "--store", store, "--workers", system.worker, "--listen", system.grpc, "--http-listen", system.http,
        "--log-level", "warning", "--max-queue", "100000", "--reuse-port", str(shared),
    ]  # fmt: skip
    return await start("services.router", *flags, on=on)


async def _listening(address: str) -> None:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(_START_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def _cpu(pid: int) -> float:
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9
