"""`python -m services.worker`: settings, logs, traces, then the service until a signal."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence

from deltaserve import config, logs, telemetry
from deltaserve.errors import DeltaServeError
from deltaserve.rpc.servers import run_until_signal
from services.worker.server import serve
from services.worker.settings import WorkerSettings

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a worker; returns the exit status."""
    settings = config.load(WorkerSettings, "worker", argv)
    logs.setup("worker", settings.log_level, settings.log_format)
    telemetry.setup("worker", settings.otlp_endpoint, settings.trace_share, settings.name)

    async def run(stop: asyncio.Event) -> int:
        return await serve(settings, stop)

    try:
        return run_until_signal(run)
    except DeltaServeError as error:
        log.critical("cannot start: %s", error.message)
        return 1
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    sys.exit(main())
