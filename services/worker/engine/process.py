"""Target of the engine process."""

from __future__ import annotations

import socket

from services.worker.engine.settings import EngineSettings


def run(sock: socket.socket, settings: EngineSettings) -> None:
    """Serves the front at the other end of `sock` (a stream socket pair) until Shutdown or until the front has gone.

    The first message is Ready. Both ways, messages are frames of `services.worker.wire`. An error at the start (bad
    base, too little memory) or in a step is logged and ends the process with a non-zero status.
    """
    raise NotImplementedError(sock, settings)
