"""What the router costs, beside what it should: CPU, added latency, throughput of a core, memory, several processes.

A router process on a core of its own stands between a worker without a model and clients that read raw bytes; both are
other processes on the other cores. CPU is the router process's, all threads.

    .venv/bin/python -m benchmarks.router            # all
    .venv/bin/python -m benchmarks.router cost ttft  # some
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable

from benchmarks.hardware import describe
from benchmarks.router_load.direct import direct_firsts
from benchmarks.router_load.system import System, cores, running, told

STEP_SECONDS = 0.01
TOKENS_PER_SECOND = 20_000


def row(what: str, measured: float, unit: str, target: float | None, *, at_least: bool = False, note: str = "") -> None:
    """Prints a figure, its target if it has one, and their ratio: above 1 means missed, whichever way it counts."""
    if target is None:
        print(f"{what:44} {measured:10.4g} {unit:8} {'':20} {note}", flush=True)
        return
    ratio = target / measured if at_least else measured / target
    sign = ">=" if at_least else "<="
    print(f"{what:44} {measured:10.4g} {unit:8} {sign} {target:<8.6g} {ratio:6.2f}  {note}", flush=True)


async def cost() -> None:
    """CPU of a token and of a request, at about half load, tokens written one by one."""
    async with running(STEP_SECONDS) as system:
        for way in ("grpc", "http"):
            await system.ask(way, 48, 100)
            requests, _, _ = await _spent(system, way, 1000, 1, "--pause", "0")
            for streams in (48, 256):
                tokens, share, frames = await _spent(system, way, streams, 600)
                note = f"{streams} streams, router {100 * share:.0f} % busy, {frames:.2f} tokens a frame"
                row(f"{way}: CPU of a token", 1e6 * (tokens - requests / 600), "us", 50, note=note)
            if way == "grpc":
                tokens, share, frames = await _spent(system, way, 48, 600, "--flush-ms", "50")
                note = f"as a router near its limit does; router {100 * share:.0f} % busy, {frames:.2f} tokens a frame"
                row(f"{way}: CPU of a token, gathered 50 ms", 1e6 * (tokens - requests / 600), "us", 50, note=note)
            row(f"{way}: CPU of a request", 1e6 * requests, "us", None, note="one token each, one at a time")


async def _spent(system: System, way: str, streams: int, tokens: int, *more: str) -> tuple[float, float, float]:
    """Returns CPU seconds of a token, CPU seconds a second, and tokens a frame."""
    before = system.cpu()
    seen = await system.ask(way, streams, tokens, *more)
    used = system.cpu() - before
    return used / seen["tokens"], used / seen["seconds"], seen["tokens"] / seen["frames"]


async def ttft() -> None:
    """Time to first token through the router less that of the worker asked directly, at rest and under load."""
    async with running(STEP_SECONDS) as system:
        direct = await direct_firsts(system.worker, 500)
        for name, streams in (("idle", 0), ("30 % load", 40)):
            load = await system.begin("grpc", streams, 1000) if streams else None
            await asyncio.sleep(2 if load else 0)
            before, began = system.cpu(), asyncio.get_running_loop().time()
            seen = await system.ask("grpc", 500, 1, "--pause", "0.005", "--channels", "1")
            share = (system.cpu() - before) / (asyncio.get_running_loop().time() - began)
            if load is not None:
                direct = await direct_firsts(system.worker, 500)
                await told(load)
            for quantile, target in ((0.5, 1.0), (0.99, 5.0)):
                through, without = _quantile(seen["firsts"], quantile), _quantile(direct, quantile)
                note = f"{through:.2f} ms through the router, {without:.2f} ms direct; router {100 * share:.0f} % busy"
                row(f"added TTFT, {name}, p{100 * quantile:g}", through - without, "ms", target, note=note)


async def throughput() -> None:
    """Tokens a second of a router that is offered more than it should manage with one core."""
    for way in ("grpc", "http"):
        async with running(STEP_SECONDS) as system:
            before = system.cpu()
            seen = await system.ask(way, 256, 800)
            share = (system.cpu() - before) / seen["seconds"]
            rate = seen["tokens"] / seen["seconds"]
            note = f"25,600 offered, router {100 * share:.0f} % busy, {seen['tokens'] / seen['frames']:.1f} a frame"
            row(f"{way}: tokens a second, one core", rate, "1/s", TOKENS_PER_SECOND, at_least=True, note=note)
            row(f"{way}: tokens a second of a full core", rate / share, "1/s", TOKENS_PER_SECOND, at_least=True)


async def streams(count: int = 10_000) -> None:
    """Memory of 10,000 open streams, or of `count` and what 10,000 would take by that."""
    async with running(0.1, stride=100) as system:  # a token each ten seconds for every stream
        before = system.resident()
        clients = await system.begin("grpc", count, 8)
        most = before
        while clients.returncode is None:
            most = max(most, system.resident())
            try:
                await asyncio.wait_for(asyncio.shield(clients.wait()), 0.2)
            except TimeoutError:
                continue
        seen = await told(clients)
        each = (most - before) / count
        note = (
            f"{before / 2**20:.0f} MiB without streams, {each / 1024:.1f} KiB each of {count:,}; "
            f"{seen['tokens']:,} tokens in {seen['seconds']:.0f} s"
        )
        row("memory of 10,000 open streams", (before + 10_000 * each) / 2**30, "GiB", 0.5, note=note)


async def several() -> None:
    """Two router processes on one port: the kernel spreads connections over them."""
    async with running(STEP_SECONDS, routers=2) as system:
        before = system.cpus()
        seen = await system.ask("grpc", 128, 400, "--channels", "16")
        rate = seen["tokens"] / seen["seconds"]
        used = [after - earlier for after, earlier in zip(system.cpus(), before, strict=True)]
        shares = " and ".join(f"{100 * one / sum(used):.0f} %" for one in used)
        note = f"12,800 offered; {1e6 * sum(used) / seen['tokens']:.0f} us a token, spread {shares}"
        row("two routers on one port: tokens a second", rate, "1/s", 12_000, at_least=True, note=note)


def _quantile(values: list[float], quantile: float) -> float:
    """Returns a quantile in milliseconds."""
    return 1e3 * statistics.quantiles(values, n=1000)[round(1000 * quantile) - 1]


PARTS: dict[str, Callable[[], Awaitable[None]]] = {
    "cost": cost, "ttft": ttft, "throughput": throughput, "streams": streams, "several": several,
}  # fmt: skip


async def run(parts: list[str]) -> None:
    """Runs parts one after the other."""
    for part in parts:
        await PARTS[part]()


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--streams", type=int, default=10_000, help="open streams of which memory is measured")
    arguments = parser.parse_args()
    chosen = arguments.parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    mine, others = cores()
    print(f"# {describe()}; router on core {sorted(mine)}, worker and clients on {sorted(others)}")
    print(f"{'':44} {'measured':>10} {'':8} {'':2} {'target':8} {'ratio':>6}")
    PARTS["streams"] = lambda: streams(arguments.streams)
    asyncio.run(run(chosen))


if __name__ == "__main__":
    main()
