"""Requests to a running stack, to see whether it works: `python deploy/send_requests.py HOST:PORT WHAT`.

WHAT is `demo`: what `make demo` sends; `packed`: of that only the deltas that are compressed already; `workers N`:
waits until N workers serve; `steady`: streams until SIGTERM and then tells how many streams there were and
how many failed, which is its exit status.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter

from deltaserve.cli.console import make_console
from deltaserve.client import AsyncClient
from deltaserve.errors import DeltaServeError
from deltaserve.v1 import admin_pb2
from examples import demo

_AT_ONCE = 4
_WAIT_SECONDS = 120.0


async def _demo(client: AsyncClient) -> int:
    console = make_console()
    await demo.upload_and_compress(console, client)
    await demo.register_packed(console, client)
    await demo.show_streams(console, client)
    return 0


async def _packed(client: AsyncClient) -> int:
    await demo.register_packed(make_console(), client)
    for name in demo.PACKED:
        done = await client.complete(name, demo.test_lines()[0].prompt, temperature=0, max_tokens=16)
        print(f"{name}: {done.text!r}")
    return 0


async def _workers(client: AsyncClient, wanted: int) -> int:
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            serving = [w for w in await client.workers() if w.state == admin_pb2.WORKER_STATE_SERVING]
            if len(serving) == wanted:
                print(f"{wanted} workers serve")
                return 0
            await asyncio.sleep(0.5)


async def _steady(client: AsyncClient) -> int:
    stop, used, failed = asyncio.Event(), Counter[str](), Counter[str]()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def stream(model: str) -> None:
        while not stop.is_set():
            try:
                done = await client.complete(model, "The package manager", max_tokens=48, ignore_eos=True)
                used[done.summary.worker] += 1
            except DeltaServeError as error:
                failed[error.message] += 1
                await asyncio.sleep(0.2)

    models = [model.model for model in await client.models()]
    await asyncio.gather(*(stream(models[number % len(models)]) for number in range(_AT_ONCE)))
    print(f"{used.total()} streams on {len(used)} workers, {failed.total()} failed {dict(failed) or ''}")
    return int(failed.total() > 0)


async def _main(address: str, what: str, *more: str) -> int:
    async with AsyncClient(address) as client:
        if what in {"demo", "packed"}:
            return await (_demo(client) if what == "demo" else _packed(client))
        return await (_workers(client, int(more[0])) if what == "workers" else _steady(client))


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(*sys.argv[1:])))
