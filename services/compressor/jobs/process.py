"""Runs the compression pipeline in a process of its own, and tells its progress."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from deltaserve.errors import DeltaServeError, InternalError
from deltaserve.rpc.status import error_from_status
from services.compressor.jobs.records import Progress

log = logging.getLogger(__name__)

REFUSED = 3  # exit status of a pipeline that wrote its error to a file
_ROOT = Path(__file__).resolve().parents[3]  # services/ is not in the wheel: it is imported from its folder
_TAIL_LINES = 20


async def run(arguments: Sequence[str], error_file: Path, on_progress: Callable[[Progress], None]) -> None:
    """Runs `python -m <arguments>` to its end; kills it when cancelled.

    Args:
        arguments: module and its arguments.
        error_file: where the process leaves a serialised google.rpc.Status when it refuses.
        on_progress: called with each line of progress.

    Raises:
        DeltaServeError: what the process left in `error_file`; InternalError when it died without a word.
    """
    await asyncio.to_thread(error_file.unlink, missing_ok=True)
    process = await asyncio.to_thread(_spawn, arguments)
    tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    loop = asyncio.get_running_loop()

    def report(line: bytes) -> None:
        loop.call_soon_threadsafe(_report, line, on_progress)

    def note(line: bytes) -> None:
        tail.append(line.decode(errors="replace").rstrip())
        log.debug("pipeline: %s", tail[-1])

    reading = asyncio.gather(
        asyncio.to_thread(_read, process.stdout, report), asyncio.to_thread(_read, process.stderr, note)
    )
    try:
        await asyncio.shield(reading)
        status = await asyncio.to_thread(process.wait)
    except BaseException:
        process.kill()  # its work folder is made to survive that
        raise
    finally:
        await reading
        await asyncio.to_thread(_close, process)
    if status != 0:
        raise _error(status, error_file, tail)


def _spawn(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts the process.

    Not with asyncio: uvloop forks, and gRPC's fork handlers then crash the child before exec (7 in 100, see
    docs/log.md). subprocess uses vfork, which runs no handlers.
    """
    pipe = subprocess.PIPE
    return subprocess.Popen(  # noqa: S603 - our own interpreter, our own modules
        [sys.executable, "-m", *arguments],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=_environment(),
        start_new_session=True,  # Ctrl-C in a terminal is ours to handle
    )


def _read(stream: IO[bytes] | None, on_line: Callable[[bytes], None]) -> None:
    for line in stream or ():
        on_line(line)


def _close(process: subprocess.Popen[bytes]) -> None:
    with process:  # closes the pipes and waits
        pass


def _report(line: bytes, on_progress: Callable[[Progress], None]) -> None:
    try:
        on_progress(msgspec.json.decode(line, type=Progress))
    except msgspec.MsgspecError:
        log.info("pipeline: %s", line.decode(errors="replace").rstrip())


def _error(status: int, error_file: Path, tail: Sequence[str]) -> DeltaServeError:
    if status == REFUSED and error_file.is_file():
        return error_from_status(error_file.read_bytes())
    log.error("pipeline ended with status %d:\n%s", status, "\n".join(tail))
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    hint = ", perhaps because memory ran out" if status == -9 else ""
    last = f"; its last line was {tail[-1][:500]!r}" if tail else ""
    return InternalError(f"the compression process {how}{hint}{last}", status=status)


def _environment() -> dict[str, str]:
    inherited = os.environ.get("PYTHONPATH")
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *([inherited] if inherited else [])])}
