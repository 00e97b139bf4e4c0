"""All services on this machine as child processes: what `deltaserve up` and the demo run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deltaserve.cli.home import HomeLock
from deltaserve.client import AsyncClient
from deltaserve.errors import DeltaServeError, InvalidArgumentError, PreconditionError, UnavailableError
from deltaserve.v1 import admin_pb2

_READY_SECONDS = 180.0  # importing torch on a slow disk takes its time
_STOP_SECONDS = 15.0
_RESTARTS, _RESTART_WINDOW = 5, 60.0  # so many within so many seconds are taken for hopeless
_LOG_TAIL_LINES = 15


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What runs, and where it keeps its files."""

    base: Path  # folder of the base model
    home: Path  # folder for logs, uploads and caches
    store: str  # URI of the delta store
    listen: str = "127.0.0.1:50051"  # of the router; port 0 picks a free one
    http_listen: str = ""  # of the router's OpenAI-compatible API; empty: none
    workers: int = 1
    base_name: str = "base"  # what requests call the base
    source_folders: tuple[str, ...] = ()  # that compressions may name
    device: str = "cpu"
    threads: int = 0  # torch threads of each process; 0: torch's own choice
    logs_here: bool = False  # logs go to this process's standard error instead of files
    fresh: bool = False  # empty `home` first


@dataclass
class _Child:
    name: str
    command: list[str]
    process: asyncio.subprocess.Process | None = None
    log: Path | None = None


class Stack:
    """The services; `async with` starts them, waits until they serve, and stops them in order.

    A service that dies is started again, unless it keeps dying; then `failure` is set.

    Attributes:
        address: of the router.
        http_address: of its OpenAI-compatible API; empty when there is none.
        failure: resolves with the reason when the stack cannot go on.
    """

    def __init__(self, options: StackOptions, tell: Callable[[str], None] = lambda _: None) -> None:
        """Plans the stack; `tell` gets a line when something happens to a service."""
        self._options = options
        self._tell = tell
        self._children: list[_Child] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._ready = False
        self._home: HomeLock | None = None
        self.address = ""
        self.http_address = ""
        self.failure: asyncio.Future[DeltaServeError]

    async def __aenter__(self) -> Self:
        """Starts everything.

        Raises:
            InvalidArgumentError: no base there.
            PreconditionError: the services are not installed, or another stack uses this home.
            UnavailableError: a service died, or was not ready in time; with the end of its log.
        """
        _check(self._options)
        self.failure = asyncio.get_running_loop().create_future()
        self._home = await HomeLock.take(self._options.home)
        try:
            if self._options.fresh:
                self._home.empty()
            self._plan()
            for child in self._children:
                await self._start(child)
                self._watchers.append(asyncio.create_task(self._watch(child)))
            await self._wait_until_ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def log_of(self, service: str) -> Path:
        """Returns where a service's log is."""
        return self._options.home / "logs" / f"{service}.log"

    def _plan(self) -> None:
        options = self._options
        self.address = _settled(options.listen)
        self.http_address = _settled(options.http_listen) if options.http_listen else ""
        compressor = f"127.0.0.1:{_free_port('127.0.0.1')}"
        workers = [f"127.0.0.1:{_free_port('127.0.0.1')}" for _ in range(options.workers)]
        shared = ["--base", str(options.base), "--store", options.store]
        shared += ["--device", options.device, "--threads", str(options.threads)]
        self._add(
            "compressor", "services.compressor", *shared, "--listen", compressor,
            "--work", str(options.home / "compressor"), "--source-folders", ",".join(options.source_folders),
        )  # fmt: skip
        for number, address in enumerate(workers, start=1):
            self._add(
                f"worker-{number}", "services.worker", *shared, "--listen", address, "--name", f"worker-{number}",
                "--cache", str(options.home / f"worker-{number}"), "--base-model", options.base_name,
                "--notice-seconds", "0", "--grace-seconds", "5",
            )  # fmt: skip
        self._add(
            "router", "services.router", "--store", options.store, "--listen", self.address,
            "--http-listen", self.http_address, "--workers", ",".join(workers), "--compressor", compressor,
            "--notice-seconds", "0", "--grace-seconds", "5",
        )  # fmt: skip

    def _add(self, name: str, module: str, *flags: str) -> None:
        self._children.append(
            _Child(name, [sys.executable, "-m", "deltaserve.cli.child", module, *flags, "--log-format", "text"])
        )

    async def _start(self, child: _Child) -> None:
        if self._options.logs_here:
            child.process = await self._spawn(child, None)
            return
        child.log = self.log_of(child.name)
        child.log.parent.mkdir(parents=True, exist_ok=True)
        with child.log.open("ab") as log:
            child.process = await self._spawn(child, log.fileno())

    async def _spawn(self, child: _Child, output: int | None) -> asyncio.subprocess.Process:
        # a process group of its own: Ctrl-C in the terminal reaches us alone, and we stop services in order
        # and it holds the home's lock too, so that nobody takes the home over while a service still ends
        locks = (self._home.fileno(),) if self._home else ()
        return await asyncio.create_subprocess_exec(
            *child.command, stdin=subprocess.PIPE, stdout=output, stderr=output, process_group=0, pass_fds=locks
        )

    async def _watch(self, child: _Child) -> None:
        """Starts a service again when it dies, unless it dies at the start or too often."""
        deaths: list[float] = []
        while child.process is not None:
            status = await child.process.wait()
            now = time.monotonic()
            deaths = [at for at in deaths if now - at < _RESTART_WINDOW] + [now]
            if len(deaths) > _RESTARTS or not self._ready:
                if not self.failure.done():
                    self.failure.set_result(UnavailableError(_death(child, status), retry_seconds=None))
                return
            self._tell(f"{child.name} ended with status {status}; starting it again")
            await asyncio.sleep(0.5 * len(deaths))
            await self._start(child)

    async def _wait_until_ready(self) -> None:
        async with AsyncClient(self.address, patience=0, timeout=5) as client:
            end = time.monotonic() + _READY_SECONDS
            while not await self._is_ready(client):
                if self.failure.done():
                    raise self.failure.result()
                if time.monotonic() > end:
                    raise UnavailableError(
                        f"the services were not ready after {_READY_SECONDS:.0f} s", retry_seconds=None
                    )
                await asyncio.sleep(0.2)
        self._ready = True

    async def _is_ready(self, client: AsyncClient) -> bool:
        try:
            workers = await client.workers()
            await client.jobs(limit=1)  # answered by the compressor, through the router
        except DeltaServeError:
            return False
        serving = sum(worker.state == admin_pb2.WORKER_STATE_SERVING for worker in workers)
        return serving >= self._options.workers

    async def _stop(self) -> None:
        """Stops the router first, so that it drains, then what is behind it."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for names in (("router",), tuple(c.name for c in self._children if c.name != "router")):
            await asyncio.gather(*(_end(c.process) for c in self._children if c.name in names and c.process))
        if self._home is not None:
            self._home.release()


def _check(options: StackOptions) -> None:
    if importlib.util.find_spec("services") is None or importlib.util.find_spec("services.router") is None:
        raise PreconditionError(
            "the services are not installed here; run this in a checkout of DeltaServe after `make setup`, "
            "or use the container images (docker compose up)"
        )
    if not (options.base / "config.json").is_file():
        raise InvalidArgumentError(
            f"{str(options.base)!r} has no config.json; expected the folder of the base model", field="base"
        )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Asks a process to end, waits, and then makes it; being cancelled makes it at once."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as reason:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(reason, asyncio.CancelledError):
            raise
        await process.wait()


def _death(child: _Child, status: int) -> str:
    text = f"{child.name} ended with status {status}"
    if child.log is None:
        return text
    tail = "\n".join(child.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
    return f"{text}; the end of {child.log}:\n{tail}"


def _settled(address: str) -> str:
    """Returns the address with a free port in place of port 0."""
    host, _, port = address.rpartition(":")
    return f"{host}:{port if port != '0' else _free_port(host)}"


def _free_port(host: str) -> int:
    """Returns a port that is free now; another process may take it before the service does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
