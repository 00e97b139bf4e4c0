from typing import Any

import pytest

from deltaserve.bench.processes import Target, run
from deltaserve.bench.records import OK
from deltaserve.bench.runner import Progress
from deltaserve.bench.workload import Planned
from deltaserve.errors import InternalError, UnavailableError


@pytest.mark.parametrize("processes", [1, 3])
async def test_every_request_is_sent_once(peer: Any, processes: int) -> None:
    planned = [Planned(i / 100, f"m{i}", "a b c", 9) for i in range(30)]
    last: list[Progress] = []
    shares = await run(Target(peer.address), planned, processes, last.append)
    records = sorted((r for share in shares for r in share.records), key=lambda r: r.due)
    assert len(shares) == processes
    assert [(r.model, r.due, r.status, r.output_tokens) for r in records] == [(p.model, p.at, OK, 3) for p in planned]
    assert sorted(request.model for request in peer.inference.requests) == sorted(p.model for p in planned)
    assert all(share.cpu > 0 for share in shares)
    assert last[-1].ended == 30


async def test_more_processes_than_requests(peer: Any) -> None:
    shares = await run(Target(peer.address), [Planned(0.0, "m", "a", 9)], 2)
    assert [len(share.records) for share in shares] == [1, 0]
    assert all(0 <= share.cpu <= 4 for share in shares)


@pytest.mark.parametrize(("processes", "raised"), [(1, UnavailableError), (2, InternalError)])
async def test_nobody_there(processes: int, raised: type[Exception]) -> None:
    planned = [Planned(0.0, "m", "p", 1)] * 4
    with pytest.raises(raised, match=r"127\.0\.0\.1:9"):
        await run(Target("127.0.0.1:9"), planned, processes)
