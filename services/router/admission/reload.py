"""Reads the keys file again when it changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from deltaserve.errors import FormatError
from services.router.admission.gate import Gate
from services.router.admission.keys import read

log = logging.getLogger(__name__)


async def keep_keys(path: Path, seconds: float, gate: Gate) -> None:
    """Replaces the gate's keys and limits whenever the file changes, until cancelled.

    A file that cannot be read, or is malformed, changes nothing: the error is logged, and the keys before hold.

    Args:
        path: the file.
        seconds: between two looks at it.
        gate: what it is for; what was used of quotas stays used.
    """
    loop = asyncio.get_running_loop()
    known = await asyncio.to_thread(_version, path)
    while True:
        await asyncio.sleep(seconds)
        found = await asyncio.to_thread(_version, path)
        if found == known:
            continue
        known = found
        try:
            book = await asyncio.to_thread(read, path)
        except FormatError as error:
            log.error("the keys before hold: %s", error.message)  # noqa: TRY400 - the message says all
            continue
        gate.quotas.replace(book, loop.time())
        log.info("keys file %s: %d keys", path, len(book.callers))


def _version(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
