"""Who may take which job, by simulation."""

from typing import Any

from services.compressor.jobs.leases import Leases
from services.compressor.jobs.records import JobRecord


def job(job_id: str = "j", **fields: Any) -> JobRecord:
    return JobRecord(job_id=job_id, spec={}, created=0.0, updated=0.0, **fields)


def taken(leases: Leases, *records: JobRecord, running: tuple[str, ...] = (), now: float = 0.0) -> list[str]:
    return [record.job_id for record in leases.claimable(records, running, now)]


def test_queued_jobs_in_order() -> None:
    leases = Leases("me", 60)
    assert taken(leases, job("a"), job("b", state="succeeded"), job("c", home="me"), job("d", home="other")) == [
        "a",
        "c",
    ]
    assert taken(leases, job("a"), job("c"), running=("a",)) == ["c"]


def test_our_own_after_a_restart_at_once() -> None:
    assert taken(Leases("me", 60), job(state="running", owner="me", number=5)) == ["j"]


def test_another_ones_only_after_its_lease() -> None:
    leases = Leases("me", 60)
    assert taken(leases, job(state="running", owner="other", number=3), now=1000) == []
    assert taken(leases, job(state="running", owner="other", number=3), now=1059) == []
    assert taken(leases, job(state="running", owner="other", number=4), now=1070) == []  # it renewed
    assert taken(leases, job(state="running", owner="other", number=4), now=1129) == []
    assert taken(leases, job(state="running", owner="other", number=4), now=1130) == ["j"]
    assert taken(leases, job(state="running", owner="other", number=4, home="other"), now=2000) == []
