"""How soon a lost worker is noticed, and how long its streams pause before they go on elsewhere.

Two real workers serve a fine-tune behind a router in this process; streams run on both, half of them greedy and half
sampled with a seed. Then one worker is killed (SIGKILL) or frozen (SIGSTOP), engine and all. Measured are the time
until the router gives its streams to the other worker, and the longest pause that a client saw around that moment.
Every stream is compared with its tokens without a failure.

    .venv/bin/python -m benchmarks.failover --times 5 --streams 8
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.hardware import describe
from deltaserve.client import AsyncClient
from deltaserve.delta.manifest import MANIFEST_FILE, dump_manifest, parse_manifest
from deltaserve.names import RevisionName
from deltaserve.store import Store, delta_key
from services.router.server import Router
from services.router.settings import RouterSettings

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "models"
TARGETS = {signal.SIGKILL: 0.1, signal.SIGSTOP: 3.0}  # seconds until noticed
NAMES = {signal.SIGKILL: "killed", signal.SIGSTOP: "frozen"}
_BEGUN = 20  # tokens that each stream has before its worker is lost


@dataclass
class WorkerProcess:
    """A worker in a process group of its own, engine included."""

    name: str
    address: str
    command: list[str]
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it; it is ready when a router says so."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DELTASERVE_")}
        self.process = await asyncio.create_subprocess_exec(
            *self.command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, start_new_session=True
        )

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the worker and its engine."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    async def stop(self) -> None:
        """Ends it without grace."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()


@contextlib.asynccontextmanager
async def worker_process(store: str, home: Path, name: str, **flags: str) -> AsyncIterator[WorkerProcess]:
    """Runs a worker of the example base while the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    given = {
        "base": str(MODELS / "base"), "store": store, "listen": address, "name": name, "cache": str(home / name),
        "threads": "1", "notice-seconds": "0", "log-level": "error",
        **{k.replace("_", "-"): v for k, v in flags.items()},
    }  # fmt: skip
    command = [sys.executable, "-m", "services.worker", *(x for k, v in given.items() for x in (f"--{k}", v))]
    worker = WorkerProcess(name, address, command)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def publish_packed(uri: str, source: str, model: str) -> None:
    """Publishes a packed delta that ships with the examples under another name."""
    name, store = RevisionName(model, "1"), Store.open(uri)
    manifest = parse_manifest((MODELS / source / MANIFEST_FILE).read_bytes())
    for entry in manifest.files:
        if entry.source == "delta":
            await store.put_new(delta_key(name, entry.path), (MODELS / source / entry.path).read_bytes())
    changed = msgspec.structs.replace(manifest, model=model, revision="1")
    await store.put_new(delta_key(name, MANIFEST_FILE), dump_manifest(changed))


@contextlib.asynccontextmanager
async def routed(store: str, workers: list[WorkerProcess]) -> AsyncIterator[tuple[Router, AsyncClient]]:
    """Runs a router in this process."""
    settings = RouterSettings(
        store=store, workers=tuple(w.address for w in workers), listen="127.0.0.1:0", catalog_seconds=0.5,
        notice_seconds=0.0, placement_seconds=0.0, no_worker_seconds=60.0, grace_seconds=1.0,
    )  # fmt: skip
    router = Router(settings)
    async with router.running() as host, AsyncClient(f"127.0.0.1:{host.port}") as client:
        await until(lambda: serving(router) == len(workers))
        yield router, client


def serving(router: Router) -> int:
    """Returns the number of workers that take requests."""
    return sum(link.serving for link in router.fleet.links())


@dataclass
class Stream:
    """What a client saw of one stream."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of each chunk, time.monotonic() seconds
    kinds: list[str] = field(default_factory=list)  # of frames

    @property
    def longest_pause(self) -> float:
        """Seconds between two chunks, at most."""
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)

    async def read(self, client: AsyncClient, model: str, number: int, tokens: int) -> None:
        """Reads a stream to its end; even numbers are greedy, odd ones sampled with a seed."""
        sampled = {"temperature": 0.9, "seed": number} if number % 2 else {"temperature": 0.0}
        prompt = f"<|task|>stream {number}<|answer|>"
        async with client.generate(model, prompt, max_tokens=tokens, ignore_eos=True, **sampled) as frames:  # type: ignore[arg-type]
            async for frame in frames:
                self.kinds.append(str(frame.WhichOneof("frame")))
                if frame.HasField("chunk"):
                    self.times.append(time.monotonic())
                    self.tokens += frame.chunk.token_ids


async def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def on_bounce(router: Router, told: list[float]) -> None:
    """Notes when the router gives streams of a lost worker to another."""
    inner = router.dispatcher.bounced

    def bounced(*args: object) -> None:
        told.append(time.monotonic())
        inner(*args)  # type: ignore[arg-type]

    router.dispatcher.bounced = bounced  # type: ignore[method-assign]


async def lose_one(
    router: Router, client: AsyncClient, workers: list[WorkerProcess], how: signal.Signals, streams: int, tokens: int
) -> tuple[float, list[Stream]]:
    """Runs streams, loses a worker that has some of them, and waits for all ends and for the worker to be back.

    Returns:
        Seconds until the loss was noticed, and the streams.
    """
    told: list[float] = []
    on_bounce(router, told)
    seen = [Stream() for _ in range(streams)]
    reading = [asyncio.create_task(s.read(client, "tuned", n, tokens)) for n, s in enumerate(seen)]
    await until(lambda: all(len(stream.tokens) >= _BEGUN for stream in seen))
    victim = random.choice([w for w in workers if any(k.name == w.name and k.flights for k in router.fleet.links())])
    began = time.monotonic()
    victim.signal(how)
    await asyncio.gather(*reading)
    if how is signal.SIGSTOP:
        victim.signal(signal.SIGCONT)
    else:
        await victim.stop()
        await victim.start()
    await until(lambda: serving(router) == len(workers))
    return told[0] - began, seen


async def measure(times: int, streams: int, tokens: int) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        home, store = Path(folder), f"{folder}/store"
        await publish_packed(store, "g2p", "tuned")
        async with contextlib.AsyncExitStack() as stack:
            entered = [stack.enter_async_context(worker_process(store, home, name)) for name in ("one", "two")]
            workers = list(await asyncio.gather(*entered))
            router, client = await stack.enter_async_context(routed(store, workers))
            whole = [Stream() for _ in range(streams)]
            await asyncio.gather(*(s.read(client, "tuned", n, tokens) for n, s in enumerate(whole)))
            steady = statistics.median(b - a for s in whole for a, b in zip(s.times, s.times[1:], strict=False))
            print(f"{describe()}; {streams} streams of {tokens} tokens, {steady * 1e3:.1f} ms between tokens")
            for how in (signal.SIGKILL, signal.SIGSTOP):
                results = [await lose_one(router, client, workers, how, streams, tokens) for _ in range(times)]
                _report(how, results, whole)


def _report(how: signal.Signals, results: list[tuple[float, list[Stream]]], whole: list[Stream]) -> None:
    noticed = [seconds for seconds, _ in results]
    pauses = [max(stream.longest_pause for stream in seen) for _, seen in results]
    same = sum(a.tokens == b.tokens for _, seen in results for a, b in zip(seen, whole, strict=True))
    print(
        f"{NAMES[how]:>7} {len(results)} times: noticed after {_spread(noticed)} (target {TARGETS[how] * 1e3:.0f} ms), "
        f"longest pause of a stream {_spread(pauses)}, {same} of {len(results) * len(whole)} streams token-identical"
    )


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ms (max {max(seconds) * 1e3:.0f})"


def main() -> None:
    """Parses flags and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="losses of each kind")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300, help="of each stream")
    options = parser.parse_args()
    asyncio.run(measure(options.times, options.streams, options.tokens))


if __name__ == "__main__":
    main()
