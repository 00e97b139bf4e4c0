"""`python -m services.compressor.jobs.child SPEC.json`: the pipeline, in a process that ends with the compressor.

The compressor holds the other end of standard input and never writes: when it dies, however it dies, the end of
file arrives here. The lock makes a restarted compressor's pipeline wait until the former one has really gone, so that
two never write to one work folder.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import sys
import threading
from pathlib import Path

_PARENT_DIED = 70


def main() -> None:
    """Runs services.compressor.pipeline with the arguments of this process."""
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    lock = Path(sys.argv[1]).with_suffix(".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    runpy.run_module("services.compressor.pipeline", run_name="__main__", alter_sys=True)
    lock.close()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(_PARENT_DIED)


if __name__ == "__main__":
    main()
