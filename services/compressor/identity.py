"""Who a compressor is: the identity of its work folder, which only one process may use at a time."""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from pathlib import Path

from deltaserve import files
from deltaserve.errors import PreconditionError


@contextlib.contextmanager
def owned_folder(folder: Path) -> Iterator[str]:
    """Locks a work folder for this process and yields its identity, the same after every restart.

    Raises:
        PreconditionError: another compressor runs on the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PreconditionError(
                f"another compressor is running on the work folder {str(folder)!r}; stop it, or choose another --work"
            ) from error
        files.write_new(folder / "identity", uuid.uuid4().hex.encode())
        yield (folder / "identity").read_text()
