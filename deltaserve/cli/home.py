"""The folder that a local stack keeps its files in, used by one stack at a time."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
from pathlib import Path
from typing import Self

from deltaserve.errors import PreconditionError

_LOCK = "lock"
_PATIENCE_SECONDS = 10.0  # services whose starter was killed take a moment to end
_POLL_SECONDS = 0.2


class HomeLock:
    """Sole use of a home, until it is released by this process and by all that inherited the lock's file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = (folder / _LOCK).open("a")

    @classmethod
    async def take(cls, folder: Path) -> Self:
        """Takes a home, which is created; raises PreconditionError while another stack has it."""
        lock = cls(folder)
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE_SECONDS
        while not lock._taken():
            if loop.time() > end:
                lock.release()
                raise PreconditionError(
                    f"{str(folder)!r} is in use by another `deltaserve up` or demo; stop it, or choose another --home"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return lock

    def fileno(self) -> int:
        """Returns the lock's file descriptor, to be inherited."""
        return self._file.fileno()

    def empty(self) -> None:
        """Removes everything in the home."""
        for path in self._folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()

    def release(self) -> None:
        """Gives the home free."""
        self._file.close()

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
