"""`python -m services.compressor.jobs.child SPEC.json`: the pipeline, in a process that ends with the compressor.

The compressor holds the other end of standard input and never writes: when it dies, however it dies, the end of
file arrives here. The lock makes a restarted compressor's pipeline wait until the former one has really gone, so that
two never write to one work folder.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path

_PARENT_DIED = 70


def main() -> None:
    """Runs services.compressor.pipeline with the arguments of this process."""
    faulthandler.enable()  # a crash in native code leaves its stack in the compressor's log
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    lock = Path(sys.argv[1]).with_suffix(".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    status = _run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # no finalisation while the watching thread still reads: everything durable is written by now


def _run() -> int:
    try:
        runpy.run_module("services.compressor.pipeline", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 - the outermost frame
        traceback.print_exc()
        return 1
    return 0


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(_PARENT_DIED)


if __name__ == "__main__":
    main()
