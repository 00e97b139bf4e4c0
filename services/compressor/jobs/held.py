"""A job that this compressor holds: its place in the log, kept alive by appending to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from deltaserve.errors import StoreError
from services.compressor.jobs.board import JobBoard
from services.compressor.jobs.log import JobLog
from services.compressor.jobs.records import JobRecord, Progress, Stage

log = logging.getLogger(__name__)


class HeldJob:
    """The only way to change a job after it was claimed.

    Attributes:
        record: the job as it is now; progress in it may be newer than the log's.
        watching: hears of all progress.
        sealed: set right before the step that publishes: from then on it is too late to cancel.
    """

    def __init__(self, job_log: JobLog, board: JobBoard, record: JobRecord) -> None:
        self.record = record
        self.sealed = False
        self.watching: Callable[[Progress], None] = lambda _: None
        self._log = job_log
        self._board = board
        self._appending = asyncio.Lock()
        self._cancel = asyncio.Event()
        board.show(record)

    @classmethod
    async def claim(cls, job_log: JobLog, board: JobBoard, record: JobRecord, identity: str) -> HeldJob:
        """Takes a job for `identity`. Raises LostJobError if another compressor was quicker."""
        attempts = record.attempts + 1
        progress = record.progress or Progress()
        claimed = await job_log.append(record, state="running", owner=identity, attempts=attempts, progress=progress)
        return cls(job_log, board, claimed)

    def progressed(self, progress: Progress) -> None:
        """Tells watchers how far the job is; the log hears of it with the next record."""
        self.record = msgspec.structs.replace(self.record, progress=progress)
        self.watching(progress)
        self._board.show(self.record)

    def at(self, stage: Stage) -> None:
        """Tells watchers that the next stage has begun."""
        self.progressed(msgspec.structs.replace(self.record.progress or Progress(), stage=stage))

    def reported(self, report: str) -> None:
        """Keeps the quality report (JSON text) for the job's next record."""
        self.record = msgspec.structs.replace(self.record, report=report)

    async def append(self, **changes: Any) -> None:
        """Writes the job's next record. Raises LostJobError when it is not ours any more: stop at once."""
        async with self._appending:
            self.record = await self._log.append(self.record, **changes)
        self._board.show(self.record)

    def cancel(self) -> None:
        """Asks whoever keeps the job to stop it, without waiting for the next look at the store."""
        self._cancel.set()

    async def keep(self, renew_seconds: float, poll_seconds: float) -> None:
        """Renews the lease until the job is to be cancelled, then returns. Raises LostJobError."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            try:
                if self._cancel.is_set() or await self._log.cancel_requested(self.record.job_id):
                    return
                if loop.time() - renewed >= renew_seconds:
                    await self.append()
                    renewed = loop.time()
            except StoreError as error:
                log.warning("job %s: cannot renew the lease, trying again: %s", self.record.job_id, error)
            try:
                await asyncio.wait_for(self._cancel.wait(), poll_seconds)
            except TimeoutError:
                continue
