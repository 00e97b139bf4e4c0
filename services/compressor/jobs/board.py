"""Jobs as watchers see them: the log, and for jobs that run here also what is not in the log yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from deltaserve.errors import DrainingError
from services.compressor.jobs.log import JobLog
from services.compressor.jobs.records import JobRecord


class JobBoard:
    """The present state of jobs, and a way to wait for the next one."""

    def __init__(self, log: JobLog, poll_seconds: float) -> None:
        self._log = log
        self._poll = poll_seconds
        self._live: dict[str, JobRecord] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._closed = False

    def show(self, record: JobRecord) -> None:
        """Tells watchers what a job that runs here looks like now."""
        self._live[record.job_id] = record
        self._wake(record.job_id)

    def forget(self, job_id: str) -> None:
        """A job does not run here any more: from now on its log is asked."""
        self._live.pop(job_id, None)
        self._wake(job_id)

    def close(self) -> None:
        """Ends all watches with DrainingError."""
        self._closed = True
        for job_id in self._watchers:
            self._wake(job_id)

    async def current(self, job_id: str) -> JobRecord:
        """Returns a job as it is now. Raises NotFoundError."""
        return self._live.get(job_id) or await self._log.latest(job_id)

    async def all(self) -> list[JobRecord]:
        """Returns all jobs as they are now, oldest first."""
        return [self._live.get(record.job_id, record) for record in await self._log.all()]

    async def watch(self, job_id: str) -> AsyncIterator[JobRecord]:
        """Yields a job now and after every change, to its end. Raises NotFoundError, DrainingError."""
        changed = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(changed)
        shown: JobRecord | None = None
        try:
            while shown is None or not shown.ended:
                if self._closed:
                    raise DrainingError(f"the compressor is shutting down; watch job {job_id!r} again in a moment")
                changed.clear()
                record = await self.current(job_id)
                if record != shown:
                    yield record
                    shown = record
                else:
                    await self._wait(changed)
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def _wait(self, changed: asyncio.Event) -> None:
        try:
            await asyncio.wait_for(changed.wait(), self._poll)  # another compressor may work on it
        except TimeoutError:
            return

    def _wake(self, job_id: str) -> None:
        for changed in self._watchers.get(job_id, ()):
            changed.set()
