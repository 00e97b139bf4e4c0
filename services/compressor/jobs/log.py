"""The log of jobs in the store: `jobs/<id>/<number>.json`, every change a new object that is created only once.

The state is inside the object and not in its key, so that two compressors that append at the same time contend for one
key, and exactly one of them succeeds: the other learns that the job is not its own (docs/adr/0003).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from deltaserve.errors import FormatError, NotFoundError, PreconditionError
from deltaserve.store import Store, job_prefix
from services.compressor.jobs.records import JobRecord, dump_record, following, parse_record

log = logging.getLogger(__name__)

_CANCEL_FILE = "cancel"
_READS_AT_ONCE = 16


class LostJobError(PreconditionError):
    """Another compressor has changed the job since it was read."""

    reason = "JOB_LOST"


class JobLog:
    """Reads and appends job records. Ended jobs are kept in memory (without reports), since nothing follows them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended: dict[str, JobRecord] = {}

    async def create(self, record: JobRecord) -> JobRecord:
        """Writes a job's first record, or returns the newest one if the job exists."""
        if await self._store.put_new(_key(record), dump_record(record)):
            return record
        return await self.latest(record.job_id)

    async def append(self, record: JobRecord, **changes: Any) -> JobRecord:
        """Writes the record after `record`. Raises LostJobError if there is one already."""
        after = following(record, time.time(), **changes)
        if not await self._store.put_new(_key(after), dump_record(after)):
            raise LostJobError(f"job {record.job_id!r} was changed by another compressor", job=record.job_id)
        return after

    async def latest(self, job_id: str) -> JobRecord:
        """Returns the newest record of a job. Raises NotFoundError."""
        keys = [o.key for o in await self._store.list(job_prefix(job_id)) if o.key.endswith(".json")]
        if not keys:
            raise NotFoundError(f"there is no job {job_id!r}", kind="job", name=job_id)
        return parse_record(await self._store.get(keys[-1]))

    async def all(self) -> list[JobRecord]:
        """Returns the newest record of every job, oldest job first; those of ended jobs lack their reports."""
        gate = asyncio.Semaphore(_READS_AT_ONCE)

        async def read(job_id: str) -> JobRecord | None:
            if job_id in self._ended:
                return self._ended[job_id]
            async with gate:
                try:
                    record = await self.latest(job_id)
                except NotFoundError:
                    return None  # a folder without a record, such as that of a create that was cut off
                except FormatError as error:  # of a newer version, say: it must not stop all other jobs
                    log.warning("job %s is ignored: %s", job_id, error)
                    return None
            if record.ended:
                self._ended[job_id] = msgspec.structs.replace(record, report="")
            return record

        found = await asyncio.gather(*(read(job_id) for job_id in await self._store.list_folders("jobs/")))
        return sorted((r for r in found if r is not None), key=lambda r: (r.created, r.job_id))

    async def request_cancel(self, job_id: str) -> None:
        """Leaves the wish that a job be cancelled, for whichever compressor works on it."""
        await self._store.put_new(job_prefix(job_id) + _CANCEL_FILE, b"")

    async def cancel_requested(self, job_id: str) -> bool:
        """Tells whether a job is to be cancelled."""
        return await self._store.exists(job_prefix(job_id) + _CANCEL_FILE)


def _key(record: JobRecord) -> str:
    return f"{job_prefix(record.job_id)}{record.number:06d}.json"
