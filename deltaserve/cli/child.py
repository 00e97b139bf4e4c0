"""`python -m deltaserve.cli.child MODULE ARGUMENTS...`: a service in a process that ends with the one that started it.

The starter holds the other end of standard input and never writes: when it dies, however it dies, the end of file
arrives here and stops the service as SIGTERM does.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_GRACE_SECONDS = 20.0


def main() -> None:
    """Runs the module that the first argument names, with the other arguments as its own."""
    threading.Thread(target=_end_with_starter, name="starter-watch", daemon=True).start()
    module = sys.argv[1]
    sys.argv[:] = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_starter() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)  # the group is ours alone: see Stack


if __name__ == "__main__":
    main()
