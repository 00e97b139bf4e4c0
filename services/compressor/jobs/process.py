"""Runs the compression pipeline in a process of its own, and tells its progress."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

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
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=_environment(),
        limit=1 << 20,
        start_new_session=True,  # Ctrl-C in a terminal is ours to handle
    )
    tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    try:
        await asyncio.gather(
            _read_progress(cast("asyncio.StreamReader", process.stdout), on_progress),
            _read_log(cast("asyncio.StreamReader", process.stderr), tail),
        )
        status = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # its work folder is made to survive that
            await process.wait()
    if status != 0:
        raise _error(status, error_file, tail)


async def _read_progress(stream: asyncio.StreamReader, on_progress: Callable[[Progress], None]) -> None:
    async for line in stream:
        try:
            on_progress(msgspec.json.decode(line, type=Progress))
        except msgspec.MsgspecError:
            log.info("pipeline: %s", line.decode(errors="replace").rstrip())


async def _read_log(stream: asyncio.StreamReader, tail: collections.deque[str]) -> None:
    async for line in stream:
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
