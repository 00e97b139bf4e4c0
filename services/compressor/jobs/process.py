"""Runs the compression pipeline in a process of its own, and tells its progress."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO

import msgspec

from deltaserve.errors import DeltaServeError, InternalError
from deltaserve.rpc.status import error_from_status
from services.compressor.jobs.records import Progress

log = logging.getLogger(__name__)

REFUSED = 3  # exit status of a pipeline that wrote its error to a file
_ROOT = Path(__file__).resolve().parents[3]  # services/ is not in the wheel: it is imported from its folder
_TAIL_LINES = 20
_LINE_BYTES = 1 << 20


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
    tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    spawning = asyncio.ensure_future(asyncio.to_thread(_spawn, arguments))
    try:
        process = await asyncio.shield(spawning)
        await asyncio.gather(_read_progress(process.stdout, on_progress), _read_log(process.stderr, tail))
        status = await asyncio.to_thread(process.wait)
    finally:
        await asyncio.to_thread(_end, await spawning)
    if status != 0:
        raise _error(status, error_file, tail)


def _spawn(arguments: Sequence[str]) -> Popen[bytes]:
    """Starts the process.

    Not with asyncio: uvloop forks, and gRPC's fork handlers then crash the child before exec (7 in 100, see
    docs/log.md). subprocess uses vfork, which runs no handlers.
    """
    return Popen(  # noqa: S603 - our own interpreter, our own modules  # noqa: S603 - our own interpreter and modules
        [sys.executable, "-m", *arguments],
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=_environment(),
        start_new_session=True,  # Ctrl-C in a terminal is ours to handle
    )


def _end(process: Popen[bytes]) -> None:
    """Makes sure that the process is gone; its work folder is made to survive a kill."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


async def _lines(pipe: IO[bytes] | None) -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        async for line in reader:
            yield line
    finally:
        transport.close()


async def _read_progress(pipe: IO[bytes] | None, on_progress: Callable[[Progress], None]) -> None:
    async for line in _lines(pipe):
        try:
            on_progress(msgspec.json.decode(line, type=Progress))
        except msgspec.MsgspecError:
            log.info("pipeline: %s", line.decode(errors="replace").rstrip())


async def _read_log(pipe: IO[bytes] | None, tail: collections.deque[str]) -> None:
    async for line in _lines(pipe):
        text = line.decode(errors="replace").rstrip()
        tail.append(text)
        log.debug("pipeline: %s", text)


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
