"""Logging of a service process: one line a record on standard error."""

from __future__ import annotations

import logging


def setup(service: str, level: str = "info") -> None:
    """Configures the root logger once; `level` is a name of the logging module in any case."""
    logging.basicConfig(
        level=level.upper(), format=f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s", force=True
    )
    # obstore's HTTP client and grpc's poller are chatty below warning
    for noisy in ("grpc", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
