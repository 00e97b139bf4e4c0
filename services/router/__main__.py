"""`python -m services.router`: runs a router until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import sys

from deltaserve import config, logs, telemetry
from deltaserve.errors import DeltaServeError
from deltaserve.rpc.servers import run_until_signal
from services.router.server import run
from services.router.settings import RouterSettings


def main() -> int:
    """Returns the exit status: 0 after a drain, 1 when the router could not start."""
    settings = config.load(RouterSettings, "router")
    logs.setup("router", settings.log_level, settings.log_format)
    telemetry.setup("router", settings.otlp_endpoint, settings.trace_share, settings.name)
    try:
        return run_until_signal(lambda stop: run(settings, stop))
    except DeltaServeError as error:
        logging.getLogger(__name__).critical("%s", error.message)
        return 1
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    sys.exit(main())
