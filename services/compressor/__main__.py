"""`python -m services.compressor`: runs the compressor until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import sys

from deltaserve import config, logs, telemetry
from deltaserve.errors import DeltaServeError
from deltaserve.rpc.servers import run_until_signal
from services.compressor.service import compressor
from services.compressor.settings import Settings

log = logging.getLogger("compressor")


def main() -> int:
    """Returns the exit status: 0 after a drain, 1 when the service cannot start."""
    settings = config.load(Settings, "compressor")
    logs.setup("compressor", settings.log_level, settings.log_format)
    telemetry.setup("compressor", settings.otlp_endpoint, settings.trace_share)

    async def serve(stop: asyncio.Event) -> int:
        try:
            async with compressor(settings):
                await stop.wait()
        except DeltaServeError as error:
            log.error("%s", error)  # noqa: TRY400 - the message says what to do, a traceback would hide it
            return 1
        return 0

    try:
        return run_until_signal(serve)
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    sys.exit(main())
