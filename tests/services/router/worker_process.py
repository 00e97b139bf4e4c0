"""A scripted worker in a process of its own, to be killed or frozen: `python worker_process.py NAME PORT`.

Every request gets one token and then nothing more.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


async def main(name: str, port: int) -> None:
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from deltaserve.v1 import worker_pb2 as wpb
    from tests.services.router.conftest import ScriptedWorker, chunk, serve

    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        if submit.request.text != "silence":
            worker.emit(submit.request_id, chunk(name, 1))
        await asyncio.Event().wait()

    worker = ScriptedWorker(name)
    worker.script = script
    async with serve(worker, port) as bound:
        sys.stdout.write(f"{bound}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
