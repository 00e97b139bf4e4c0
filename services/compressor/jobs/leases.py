"""Which job a compressor may take next. Pure: no clock, no I/O.

A compressor shows that it is alive by appending records to the jobs it owns. Others judge by *their own* clock how long
a job's newest record has not changed, so clocks of different machines are never compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from services.compressor.jobs.records import JobRecord


class Leases:
    """Remembers when each running job was first seen at its present record."""

    def __init__(self, identity: str, lease_seconds: float) -> None:
        self._identity = identity
        self._lease = lease_seconds
        self._seen: dict[str, tuple[int, float]] = {}

    def claimable(self, records: Iterable[JobRecord], running: Collection[str], now: float) -> list[JobRecord]:
        """Returns the jobs that may be taken, in the order of `records`.

        Args:
            records: the newest record of each job.
            running: jobs that this process works on.
            now: monotonic seconds.
        """
        records = list(records)
        self._seen = {record.job_id: seen for record, seen in self._sightings(records, now)}
        return [r for r in records if r.job_id not in running and self._free(r, now)]

    def _sightings(self, records: list[JobRecord], now: float) -> Iterator[tuple[JobRecord, tuple[int, float]]]:
        for record in records:
            number, since = self._seen.get(record.job_id, (-1, now))
            yield record, (record.number, since if number == record.number else now)

    def _free(self, record: JobRecord, now: float) -> bool:
        if record.ended or record.home not in {"", self._identity}:
            return False
        if record.state == "queued" or record.owner == self._identity:
            return True  # our own and not running here: a former process of ours was killed
        return now - self._seen[record.job_id][1] >= self._lease
