"""Takes jobs and sees each to its end: claims, leases, cancellation, failures, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deltaserve.errors import DeltaServeError, InternalError, StoreError
from services.compressor.jobs.board import JobBoard
from services.compressor.jobs.held import HeldJob
from services.compressor.jobs.leases import Leases
from services.compressor.jobs.log import JobLog, LostJobError
from services.compressor.jobs.records import JobRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How jobs are taken.

    Attributes:
        identity: of this compressor's work folder; the same after a restart.
        max_jobs: jobs that run at once.
        lease_seconds: after this long without a new record, other compressors take a job over.
        poll_seconds: between two looks at the store.
        max_attempts: a job that was started this often and never ended fails.
    """

    identity: str
    max_jobs: int
    lease_seconds: float
    poll_seconds: float
    max_attempts: int


class JobRunner:
    """Runs jobs of the log, at most `max_jobs` at once."""

    def __init__(
        self,
        job_log: JobLog,
        board: JobBoard,
        perform: Callable[[HeldJob], Awaitable[None]],
        forget: Callable[[JobRecord], Awaitable[None]],
        options: RunnerOptions,
    ) -> None:
        """Prepares; `run` starts.

        Args:
            job_log: where jobs are.
            board: where watchers look.
            perform: does the work of a job, and appends its success itself.
            forget: deletes what a job that has ended left on this machine.
            options: see RunnerOptions.
        """
        self._log = job_log
        self._board = board
        self._perform = perform
        self._forget = forget
        self._options = options
        self._leases = Leases(options.identity, options.lease_seconds)
        self._held: dict[str, HeldJob] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._queued = 0

    def numbers(self) -> dict[str, float]:
        """Returns how many jobs wait in the log, when it was read last, and how many run here."""
        return {"queued": self._queued, "running": len(self._tasks)}

    def wake(self) -> None:
        """Looks for jobs now instead of at the next poll."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Runs jobs until `stop`; jobs that run then go back to the queue and resume after a restart."""
        stopping = asyncio.ensure_future(stop.wait())
        stopping.add_done_callback(lambda _: self._wake.set())
        try:
            while not stop.is_set():
                self._wake.clear()
                try:
                    await self._take()
                except DeltaServeError as error:
                    log.warning("cannot look for jobs, trying again: %s", error)
                except Exception:  # whatever it is, later jobs must be taken
                    log.exception("cannot look for jobs, trying again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._options.poll_seconds)
        finally:
            stopping.cancel()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def cancel(self, job_id: str) -> JobRecord:
        """Stops a job wherever it is, and returns it as it is then. Raises NotFoundError."""
        record = await self._log.latest(job_id)
        if record.state == "queued":
            with contextlib.suppress(LostJobError):
                return await self._log.append(record, state="cancelled")
        if not record.ended:
            await self._log.request_cancel(job_id)
        if job_id in self._held:
            self._held[job_id].cancel()
            await asyncio.wait({self._tasks[job_id]}, timeout=self._options.lease_seconds)
        return await self._board.current(job_id)

    async def _take(self) -> None:
        records = await self._log.all()
        self._queued = sum(record.state == "queued" for record in records)
        for record in self._leases.claimable(records, self._tasks, time.monotonic()):
            if len(self._tasks) >= self._options.max_jobs:
                return
            with contextlib.suppress(LostJobError):
                held = await HeldJob.claim(self._log, self._board, record, self._options.identity)
                self._start(held)

    def _start(self, held: HeldJob) -> None:
        job_id = held.record.job_id
        self._held[job_id] = held
        task = asyncio.create_task(self._see_through(held), name=f"job {job_id}")
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: self._done(job_id))

    def _done(self, job_id: str) -> None:
        del self._tasks[job_id], self._held[job_id]
        self._board.forget(job_id)
        self._wake.set()

    async def _see_through(self, held: HeldJob) -> None:
        job_id = held.record.job_id
        log.info("job %s: started, attempt %d", job_id, held.record.attempts)
        try:
            await self._attempt(held)
        except LostJobError:
            log.warning("job %s: taken over by another compressor", job_id)
            return
        except StoreError as error:
            pause = min(self._options.lease_seconds, self._options.poll_seconds * 2**held.record.attempts)
            log.warning("job %s: trying again in %.0f s: %s", job_id, pause, error)
            await asyncio.sleep(pause)  # it stays ours, so the next look at the log takes it again
            return
        except asyncio.CancelledError:
            if not held.record.ended:
                with contextlib.suppress(DeltaServeError):  # nothing is lost: it is ours again after the restart
                    await held.append(state="queued", owner="")
            raise
        log.info("job %s: %s %s", job_id, held.record.state, held.record.revision)
        try:
            await self._forget(held.record)
        except (DeltaServeError, OSError) as error:  # the job has ended as it has; leftovers are swept later
            log.warning("job %s: cannot clean up: %s", job_id, error)

    async def _attempt(self, held: HeldJob) -> None:
        try:
            self._check_attempts(held.record)
            await self._work_or_cancel(held)
        except (StoreError, LostJobError):
            raise
        except DeltaServeError as error:
            await held.append(state="failed", error=error.to_status().SerializeToString())
        except Exception as error:
            log.exception("job %s failed", held.record.job_id)
            status = InternalError(f"internal error: {type(error).__name__}: {error}").to_status()
            await held.append(state="failed", error=status.SerializeToString())

    def _check_attempts(self, record: JobRecord) -> None:
        if record.attempts > self._options.max_attempts:
            raise InternalError(
                f"job {record.job_id!r} was started {self._options.max_attempts} times and never came to an end: "
                "the compressor died or lost its store each time; see its log",
                attempts=self._options.max_attempts,
            )

    async def _work_or_cancel(self, held: HeldJob) -> None:
        options = self._options
        if await self._log.cancel_requested(held.record.job_id):
            await held.append(state="cancelled")
            return
        work = asyncio.ensure_future(self._perform(held))
        keeper = asyncio.ensure_future(held.keep(options.lease_seconds / 3, options.poll_seconds))
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            keeper.cancel()
            if not held.sealed:
                work.cancel()
            await asyncio.wait({work, keeper})
        if not work.cancelled():
            work.result()  # also when the wish to cancel came too late
        elif not keeper.cancelled():
            keeper.result()  # raises when the job was lost
            await held.append(state="cancelled")
