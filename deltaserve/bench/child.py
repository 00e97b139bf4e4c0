"""A generator process: `python -m deltaserve.bench.child FILE`, where FILE holds an Assignment and gets the Result.

It says `ready` when it is connected, reads the monotonic time to start at from standard input, and tells its progress
in lines of three numbers. It ends when standard input does: nobody wants its result then.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import msgspec

from deltaserve.bench.loop import run_loop
from deltaserve.bench.processes import Assignment, Result
from deltaserve.bench.runner import Progress, Share, drive


def main(path: Path) -> None:
    """Does what the file says, and leaves the result in its place."""
    given = msgspec.msgpack.decode(path.read_bytes(), type=Assignment)
    share = run_loop(_run(given))
    path.write_bytes(msgspec.msgpack.encode(Result(share.records, share.cpu)))


async def _run(given: Assignment) -> Share:
    wire = given.target.wire()
    try:
        await wire.open()
        _say("ready")
        start = float(await asyncio.to_thread(sys.stdin.readline))
        threading.Thread(target=_end_with_parent, daemon=True).start()
        return await drive(given.planned, wire, start, given.target.timeout_seconds, _tell)
    finally:
        await wire.close()


def _tell(progress: Progress) -> None:
    _say(f"{progress.sent} {progress.ended} {progress.failed}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    main(Path(sys.argv[1]))
