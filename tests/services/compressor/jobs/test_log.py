"""The job log and two compressors on one store."""

import asyncio
from pathlib import Path

import pytest

from deltaserve.errors import NotFoundError
from deltaserve.store import Store
from services.compressor.jobs.log import JobLog, LostJobError
from services.compressor.jobs.records import JobRecord


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def first(job_id: str = "j", created: float = 1.0) -> JobRecord:
    return JobRecord(job_id=job_id, spec={"model": "m"}, created=created, updated=created)


async def test_creation_is_idempotent(store: Store) -> None:
    log = JobLog(store)
    record = await log.create(first())
    running = await log.append(record, state="running", owner="me")
    assert await log.create(first(created=2.0)) == running
    assert await JobLog(store).latest("j") == running
    assert (running.number, running.state) == (1, "running")


async def test_exactly_one_of_many_appends_wins(store: Store) -> None:
    record = await JobLog(store).create(first())
    logs = [JobLog(store) for _ in range(8)]
    results = await asyncio.gather(
        *(log.append(record, state="running" if n % 2 else "cancelled", owner=str(n)) for n, log in enumerate(logs)),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, JobRecord)]
    assert len(won) == 1
    assert sum(isinstance(result, LostJobError) for result in results) == 7
    assert await JobLog(store).latest("j") == won[0]


async def test_listing_is_oldest_first_and_ignores_what_is_no_job(store: Store) -> None:
    log = JobLog(store)
    for created, job_id in ((3.0, "a"), (1.0, "b"), (2.0, "c")):
        await log.create(first(job_id, created))
    await store.put_new("jobs/stray/cancel", b"")
    assert [record.job_id for record in await log.all()] == ["b", "c", "a"]


async def test_cancel_wishes_and_unknown_jobs(store: Store) -> None:
    log = JobLog(store)
    await log.create(first())
    assert not await log.cancel_requested("j")
    await log.request_cancel("j")
    await log.request_cancel("j")
    assert await log.cancel_requested("j")
    assert (await log.latest("j")).state == "queued"
    with pytest.raises(NotFoundError, match="no job 'x'"):
        await log.latest("x")


async def test_a_record_of_bottomless_nesting_stops_no_other_job(store: Store) -> None:
    log = JobLog(store)
    await log.create(first("a", 1.0))
    await store.put_new("jobs/b/000000.json", b'{"spec": ' + b'{"a":' * 100_000)
    assert [record.job_id for record in await log.all()] == ["a"]
