"""One run by several generator processes, when one core cannot make the load; each has its share of the schedule."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from deltaserve.bench.grpc_wire import GrpcWire
from deltaserve.bench.http_wire import HttpWire
from deltaserve.bench.records import Record
from deltaserve.bench.runner import Progress, Share, drive
from deltaserve.bench.wire import Wire
from deltaserve.bench.workload import Planned
from deltaserve.errors import InternalError

_SOON = 0.2  # seconds from the word to start until the start, so that every process has it by then


class Target(msgspec.Struct, frozen=True):
    """Where requests go: `address` of a router, or the `url` of an OpenAI-compatible server when there is one."""

    address: str
    url: str = ""
    timeout_seconds: float = 600.0

    def wire(self) -> Wire:
        """Returns the protocol, not opened yet."""
        return HttpWire(self.url) if self.url else GrpcWire(self.address)


class Assignment(msgspec.Struct, frozen=True):
    """What a process is given."""

    target: Target
    planned: list[Planned]


class Result(msgspec.Struct):
    """What a process returns."""

    records: list[Record]
    cpu: float


Tell = Callable[[Progress], None]


async def run(target: Target, planned: Sequence[Planned], processes: int, tell: Tell = lambda _: None) -> list[Share]:
    """Sends a schedule from so many processes (one: this one); returns what each did.

    Raises:
        DeltaServeError, AnswerError, OSError: the server cannot be reached.
        InternalError: a generator process died; with what it said last.
    """
    if processes == 1:
        wire = target.wire()
        try:
            await wire.open()
            return [await drive(planned, wire, time.monotonic() + _SOON, target.timeout_seconds, tell)]
        finally:
            await wire.close()
    with tempfile.TemporaryDirectory() as folder:
        children = [_Child(Path(folder, str(i)), target, planned[i::processes]) for i in range(processes)]
        try:
            return await _run_children(children, tell)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await asyncio.gather(*(child.stop() for child in children))


async def _run_children(children: Sequence[_Child], tell: Tell) -> list[Share]:
    async with asyncio.TaskGroup() as group:
        for child in children:
            group.create_task(child.prepare())
    start = time.monotonic() + _SOON  # CLOCK_MONOTONIC is the same for all processes of a machine
    async with asyncio.TaskGroup() as group:
        sharing = [group.create_task(child.run(start, lambda: tell(_sum(children)))) for child in children]
    return [task.result() for task in sharing]


@dataclass(slots=True)
class _Child:
    path: Path
    target: Target
    planned: Sequence[Planned]
    progress: Progress = field(default_factory=Progress)
    process: asyncio.subprocess.Process | None = None

    async def prepare(self) -> None:
        """Starts the process; returns when it is connected."""
        assignment = msgspec.msgpack.encode(Assignment(self.target, list(self.planned)))
        await asyncio.to_thread(self.path.write_bytes, assignment)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deltaserve.bench.child", str(self.path),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        if await _stream(self.process.stdout).readline() != b"ready\n":
            raise await self._death(self.process)

    async def run(self, start: float, tell: Callable[[], None]) -> Share:
        """Lets it run from `start`; returns what it did."""
        if (process := self.process) is None or process.stdin is None:
            raise RuntimeError("not prepared")
        process.stdin.write(f"{start!r}\n".encode())
        while line := await _stream(process.stdout).readline():
            self.progress = Progress(*map(int, line.split()))
            tell()
        if await process.wait():
            raise await self._death(process)
        result = msgspec.msgpack.decode(await asyncio.to_thread(self.path.read_bytes), type=Result)
        return Share(result.records, result.cpu)

    async def stop(self) -> None:
        """Ends the process if it still runs."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def _death(self, process: asyncio.subprocess.Process) -> InternalError:
        said = (await _stream(process.stderr).read()).decode(errors="replace").strip().splitlines()
        status = await process.wait()
        return InternalError(f"a generator process ended with status {status}: {(said or ['it said nothing'])[-1]}")


def _stream(pipe: asyncio.StreamReader | None) -> asyncio.StreamReader:
    if pipe is None:
        raise RuntimeError("the process has no such pipe")
    return pipe


def _sum(children: Sequence[_Child]) -> Progress:
    parts = [child.progress for child in children]
    return Progress(sum(p.sent for p in parts), sum(p.ended for p in parts), sum(p.failed for p in parts))
