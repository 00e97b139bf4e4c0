"""Keeps pinned models in the workers' memory: tells every worker once what changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from deltaserve.catalog import Catalog, ModelRecord
from deltaserve.errors import DeltaServeError
from deltaserve.v1.inference_pb2 import TIER_DEVICE
from services.router.fleet import Fleet
from services.router.link import WorkerLink

log = logging.getLogger(__name__)


async def keep_catalog(
    catalog: Catalog, fleet: Fleet, seconds: float, read: Callable[[Sequence[ModelRecord]], None]
) -> None:
    """Reads the store every `seconds`, so that requests need not wait for it, and passes pins on; until cancelled.

    `read` hears of all models each time.
    """
    while True:
        try:
            await catalog.refresh()
            records = await catalog.models()
        except DeltaServeError as error:
            log.warning("cannot read the store, going on with what was known: %s", error.message)
        else:
            read(records)
            for link in fleet.links():
                place_pins(link, records)
        await asyncio.sleep(seconds)


def place_pins(link: WorkerLink, records: Iterable[ModelRecord]) -> None:
    """Sends a worker the orders that make its pins those of the records, newest revisions of its own base."""
    if not link.connected or link.welcome is None:
        return
    base = link.welcome.base_fingerprint
    wanted = {str(r.latest) for r in records if r.pinned and r.manifest.base.fingerprint == base}
    for revision in sorted(wanted - link.pins):
        link.place(revision, TIER_DEVICE, pinned=True)
    for revision in sorted(link.pins - wanted):
        link.place(revision, TIER_DEVICE, pinned=False)
    link.pins = wanted
