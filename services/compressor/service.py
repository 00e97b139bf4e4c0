"""Puts the compressor's parts together and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import grpc

from deltaserve.errors import DeltaServeError, StoreError
from deltaserve.metrics import exposed
from deltaserve.rpc.servers import Host, serving
from deltaserve.store import Store
from deltaserve.v1 import models_pb2_grpc as rpc
from services.compressor.base import Base, register
from services.compressor.identity import owned_folder
from services.compressor.jobs.board import JobBoard
from services.compressor.jobs.intake import Intake
from services.compressor.jobs.log import JobLog
from services.compressor.jobs.runner import JobRunner, RunnerOptions
from services.compressor.jobs.work import JobWork
from services.compressor.metrics import CompressorMetrics
from services.compressor.revisions import Revisions
from services.compressor.server import SERVICE, ModelServicer
from services.compressor.settings import Settings
from services.compressor.sources import UPLOAD_SCHEME, Sources
from services.compressor.uploads.uploads import Limits, Uploads

log = logging.getLogger(__name__)

_EXPIRY_SECONDS = 600.0


@contextlib.asynccontextmanager
async def compressor(settings: Settings) -> AsyncIterator[Host]:
    """Runs a compressor while the block runs; it is serving when the block begins, and drains when it ends.

    Raises:
        DeltaServeError: the base is not supported, the work folder is in use, or the address is taken.
    """
    work = settings.work.expanduser().resolve()
    with owned_folder(work) as identity:
        base = await asyncio.to_thread(Base.open, settings.base.expanduser().resolve(), work / "fingerprints")
        log.info("base %s at %s", base.fingerprint, base.folder)
        store = Store.open(settings.store)
        servicer, tasks = _assemble(settings, store, base, identity, work)
        stop = asyncio.Event()
        running = [asyncio.create_task(task) for task in (servicer.runner.run(stop), *tasks)]

        def add(server: grpc.aio.Server) -> None:
            rpc.add_ModelServiceServicer_to_server(servicer, server)

        try:
            async with (
                exposed(settings.metrics_listen, servicer.metrics.registry),
                serving(settings.listen, add, [SERVICE], settings.grace_seconds) as host,
            ):
                await host.set_serving(True)
                log.info("serving on port %d", host.port)
                try:
                    yield host
                finally:
                    servicer.draining = True
                    await host.set_serving(False)
                    servicer.board.close()
                    stop.set()
                    await running[0]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _assemble(
    settings: Settings, store: Store, base: Base, identity: str, work: Path
) -> tuple[ModelServicer, list[Coroutine[Any, Any, None]]]:
    """Returns the servicer with all that stands behind it, and what is to run beside its runner."""
    registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    uploads = Uploads(work / "uploads", Limits(settings.upload_quota_bytes, settings.disk_reserve_bytes))
    sources = Sources(uploads, settings.source_folders, settings.source_uris, settings.disk_reserve_bytes)
    job_log = JobLog(store)
    board = JobBoard(job_log, settings.poll_seconds)
    metrics = CompressorMetrics()
    doing = JobWork(store, base, registered, sources, work / "jobs", settings.device, settings.threads, metrics)
    options = RunnerOptions(
        identity, settings.max_jobs, settings.lease_seconds, settings.poll_seconds, settings.max_attempts
    )
    runner = JobRunner(job_log, board, doing.perform, doing.forget, options)
    metrics.serve(runner.numbers)
    revisions = Revisions(store)
    intake = Intake(identity, base, sources, job_log, revisions, settings.policy)
    servicer = ModelServicer(base, uploads, intake, board, runner, revisions, metrics)
    keep_seconds = settings.upload_keep_hours * 3600
    return servicer, [_register(store, base, registered), _expire(uploads, doing, job_log, keep_seconds)]


async def _register(store: Store, base: Base, registered: asyncio.Future[None]) -> None:
    """Brings the base into the store, however long the store is away."""
    pause = 1.0
    while True:
        try:
            await register(store, base)
        except StoreError as error:
            log.warning("cannot register the base, trying again in %.0f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(60.0, pause * 2)
        else:
            registered.set_result(None)
            return


async def _expire(uploads: Uploads, work: JobWork, job_log: JobLog, keep_seconds: float) -> None:
    """Deletes what nothing needs any more, now and then: old uploads that no job waits for, work of ended jobs."""
    while True:
        try:
            records = await job_log.all()
            await work.sweep(records)
            waiting = [record.source_uri for record in records if not record.ended]
            keep = {uri.removeprefix(UPLOAD_SCHEME) for uri in waiting if uri.startswith(UPLOAD_SCHEME)}
            expired = await asyncio.to_thread(uploads.expire, time.time() - keep_seconds, keep)
            if expired:
                log.info("deleted uploads that nothing touched: %s", ", ".join(expired))
        except (DeltaServeError, OSError) as error:
            log.warning("cannot look for old uploads: %s", error)
        await asyncio.sleep(_EXPIRY_SECONDS)
