"""The runner with real logs and stores; the work of a job is the test's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from deltaserve.errors import DrainingError, InvalidArgumentError, NotFoundError, StoreError
from deltaserve.rpc.status import error_from_status
from deltaserve.store import Store
from services.compressor.jobs.board import JobBoard
from services.compressor.jobs.held import HeldJob
from services.compressor.jobs.log import JobLog
from services.compressor.jobs.records import JobRecord, Progress
from services.compressor.jobs.runner import JobRunner, RunnerOptions

Work = Callable[[HeldJob], Awaitable[None]]


class Compressor:
    """A runner on a store, with a switch."""

    def __init__(self, store: Store, work: Work, identity: str = "me", lease: float = 30.0, attempts: int = 3) -> None:
        self.log = JobLog(store)
        self.board = JobBoard(self.log, 0.05)
        self.forgotten: list[str] = []
        options = RunnerOptions(identity, 1, lease, 0.05, attempts)
        self.runner = JobRunner(self.log, self.board, work, self.forget, options)
        self.stop = asyncio.Event()

    async def forget(self, record: JobRecord) -> None:
        self.forgotten.append(record.job_id)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Compressor"]:
        task = asyncio.create_task(self.runner.run(self.stop))
        try:
            yield self
        finally:
            self.stop.set()
            await task

    async def ended(self, job_id: str) -> JobRecord:
        async with asyncio.timeout(10):
            return [record async for record in self.board.watch(job_id)][-1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


async def queued(store: Store, job_id: str = "j", **fields: str) -> None:
    await JobLog(store).create(JobRecord(job_id=job_id, spec={"model": "m"}, created=1, updated=1, **fields))


async def succeed(held: HeldJob) -> None:
    held.progressed(Progress(stage="compressing", layers_done=1, layers_total=2))
    await asyncio.sleep(0.01)
    held.sealed = True
    await held.append(state="succeeded", revision="1", report="{}")


async def forever(_: HeldJob) -> None:
    await asyncio.Event().wait()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_jobs_run_to_success_and_are_watched(store: Store) -> None:
    await queued(store)
    compressor = Compressor(store, succeed)
    watching = asyncio.create_task(_collect(compressor.board, "j"))
    await asyncio.sleep(0)
    async with compressor.running():
        seen = await asyncio.wait_for(watching, 10)
    assert seen[-1].state == "succeeded"
    assert any(record.progress and record.progress.layers_done == 1 for record in seen)
    assert compressor.forgotten == ["j"]
    assert seen[-1].attempts == 1


async def _collect(board: JobBoard, job_id: str) -> list[JobRecord]:
    return [record async for record in board.watch(job_id)]


async def test_errors_end_a_job_with_their_status_and_report(store: Store) -> None:
    async def work(held: HeldJob) -> None:
        held.reported('{"kl": 1}')
        raise InvalidArgumentError("NaN in w", field="files")

    await queued(store)
    async with Compressor(store, work).running() as compressor:
        record = await compressor.ended("j")
    assert record.state == "failed"
    assert record.report == '{"kl": 1}'
    error = error_from_status(record.error)
    assert isinstance(error, InvalidArgumentError)
    assert error.message == "NaN in w"


async def test_a_bug_ends_a_job_as_internal(store: Store) -> None:
    async def work(_: HeldJob) -> None:
        raise KeyError("oops")

    await queued(store)
    async with Compressor(store, work).running() as compressor:
        record = await compressor.ended("j")
    assert error_from_status(record.error).reason == "INTERNAL"


async def test_store_failures_are_tried_again_then_given_up(store: Store) -> None:
    async def work(held: HeldJob) -> None:
        if held.record.attempts < 3 or held.record.job_id == "never":
            raise StoreError("down")
        await succeed(held)

    await queued(store)
    await queued(store, "never")
    async with Compressor(store, work, lease=0.1).running() as compressor:
        assert (await compressor.ended("j")).attempts == 3
        given_up = await compressor.ended("never")
    assert given_up.state == "failed"
    assert "3 times" in error_from_status(given_up.error).message


async def test_cancel_while_queued_running_and_ended(store: Store) -> None:
    await queued(store, "a")
    await queued(store, "b")
    async with Compressor(store, forever).running() as compressor:
        await until(lambda: _is(compressor, "a", "running"))
        assert (await compressor.runner.cancel("b")).state == "cancelled"
        assert (await compressor.runner.cancel("a")).state == "cancelled"
        assert (await compressor.runner.cancel("a")).state == "cancelled"
        with pytest.raises(NotFoundError):
            await compressor.runner.cancel("x")
    assert compressor.forgotten == ["a"]


async def _is(compressor: Compressor, job_id: str, state: str) -> bool:
    return (await compressor.log.latest(job_id)).state == state


async def test_cancel_through_another_compressor(store: Store) -> None:
    await queued(store)
    async with Compressor(store, forever).running() as compressor:
        await until(lambda: _is(compressor, "j", "running"))
        other = Compressor(store, forever, "other")
        await other.runner.cancel("j")
        assert (await other.ended("j")).state == "cancelled"


async def test_too_late_to_cancel_what_is_being_published(store: Store) -> None:
    async def work(held: HeldJob) -> None:
        held.sealed = True
        await asyncio.sleep(0.3)
        await held.append(state="succeeded", revision="1")

    await queued(store)
    async with Compressor(store, work).running() as compressor:
        await until(lambda: _is(compressor, "j", "running"))
        await asyncio.sleep(0.1)
        assert (await compressor.runner.cancel("j")).state == "succeeded"


async def test_a_drain_gives_the_job_back_and_ends_watches(store: Store) -> None:
    await queued(store)
    async with Compressor(store, forever).running() as compressor:
        await until(lambda: _is(compressor, "j", "running"))
        watching = asyncio.create_task(_collect(compressor.board, "j"))
        await asyncio.sleep(0.02)
        compressor.board.close()
        with pytest.raises(DrainingError):
            await watching
    record = await JobLog(store).latest("j")
    assert (record.state, record.owner, record.attempts) == ("queued", "", 1)


async def test_two_compressors_never_work_on_one_job(store: Store) -> None:
    runs: list[str] = []

    async def work(held: HeldJob) -> None:
        runs.append(held.record.job_id)
        await succeed(held)

    names = [f"j{n}" for n in range(12)]
    for name in names:
        await queued(store, name)
    one, two = Compressor(store, work, "one"), Compressor(store, work, "two")
    async with one.running(), two.running():
        for name in names:
            await one.ended(name)
    assert sorted(runs) == sorted(names)


async def test_a_silent_owner_is_replaced_and_learns_it(store: Store) -> None:
    """The former owner stalls past its lease (its loop is not run); its next append is refused."""
    await queued(store)
    log = JobLog(store)
    stalled = await HeldJob.claim(log, JobBoard(log, 1), await log.latest("j"), "stalled")
    async with Compressor(store, succeed, "successor", lease=0.2).running() as compressor:
        record = await compressor.ended("j")
    assert (record.owner, record.attempts) == ("successor", 2)
    with pytest.raises(Exception, match="changed by another compressor"):
        await stalled.append(revision="7")
