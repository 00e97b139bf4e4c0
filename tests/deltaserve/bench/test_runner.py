"""The runner against a real gRPC server that echoes the words of a prompt."""

import asyncio
import time
from typing import Any

from deltaserve.bench.grpc_wire import GrpcWire
from deltaserve.bench.records import CANCELLED, OK, Record
from deltaserve.bench.runner import Progress, drive
from deltaserve.bench.workload import Planned

WORDS = "one two three four five six"


async def send(address: str, planned: list[Planned], timeout_seconds: float = 60.0) -> list[Record]:
    wire, told = GrpcWire(address), Progress()

    def tell(progress: Progress) -> None:
        told.sent, told.ended, told.failed = progress.sent, progress.ended, progress.failed

    try:
        await wire.open()
        records = (await drive(planned, wire, time.monotonic(), timeout_seconds, tell)).records
    finally:
        await wire.close()
    failed = sum(record.status not in {OK, CANCELLED} for record in records)
    assert (told.sent, told.ended, told.failed) == (len(planned), len(planned), failed)
    return records


async def test_arrivals_do_not_wait_for_answers(peer: Any) -> None:
    original, arrived, count = peer.inference.Generate, 0, 40

    async def held(request: Any, context: Any) -> Any:
        # nobody is answered before everybody has asked: a generator that waits would wait for ever
        nonlocal arrived
        arrived += 1
        while arrived < count:
            await asyncio.sleep(0.005)
        async for frame in original(request, context):
            yield frame

    peer.stop()
    peer.inference.Generate = held
    peer.start()
    planned = [Planned(i / 200, "french", WORDS, 9) for i in range(count)]
    records = await send(peer.address, planned)
    assert [r.status for r in records] == [OK] * count


async def test_records_tell_what_came_and_when(peer: Any) -> None:
    planned = [Planned(i / 50, f"m{i}", WORDS, 9) for i in range(5)]
    for request, record in zip(planned, await send(peer.address, planned), strict=True):
        assert (record.model, record.due, record.status) == (request.model, request.at, OK)
        assert (record.prompt_tokens, record.output_tokens, len(record.times)) == (6, 6, 6)
        moments = [record.due, record.sent, *record.times, record.ended]
        assert moments == sorted(moments)
        assert record.ttft == record.times[0] - record.due
        assert record.e2e == record.ended - record.due


async def test_options_reach_the_server(peer: Any) -> None:
    await send(peer.address, [Planned(0.0, "a", [4, 5], 9, 9, True), Planned(0.01, "b", "x", 3)])
    first, second = sorted(peer.inference.requests, key=lambda request: request.model)
    assert list(first.token_ids.ids) == [4, 5]
    assert (first.stopping.max_tokens, first.stopping.min_tokens, first.stopping.ignore_eos) == (9, 9, True)
    assert (second.text, second.stopping.max_tokens) == ("x", 3)
    assert not second.stopping.HasField("ignore_eos")


async def test_errors_are_counted_by_their_status(peer: Any) -> None:
    names = ["nobody", "french", "breaks", "nobody", "french"]
    records = await send(peer.address, [Planned(i / 100, name, WORDS, 9) for i, name in enumerate(names)])
    assert [r.status for r in records] == ["NOT_FOUND", OK, "UNAVAILABLE", "NOT_FOUND", OK]
    assert (records[0].output_tokens, records[0].ttft, records[0].per_token) == (0, None, None)
    assert records[2].output_tokens == 1


async def test_clients_leave_half_way(peer: Any) -> None:
    peer.inference.delay = 0.02
    planned = [Planned(0.0, "french", WORDS, 9, cancel_after=i or None) for i in range(4)]
    records = await send(peer.address, planned)
    assert [(r.status, r.output_tokens) for r in records] == [(OK, 6), (CANCELLED, 1), (CANCELLED, 2), (CANCELLED, 3)]
    peer.wait_idle()


async def test_who_does_not_answer_is_given_up(peer: Any) -> None:
    peer.inference.delay = 30.0
    (record,) = await send(peer.address, [Planned(0.0, "french", WORDS, 9)], 0.3)
    assert (record.status, record.output_tokens) == ("TIMEOUT", 1)
    peer.wait_idle()


async def test_a_server_that_goes_away(peer: Any) -> None:
    peer.inference.delay = 0.5
    stopping = asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(0.3), peer.stop()))
    records = await send(peer.address, [Planned(i * 0.4, "french", WORDS, 9) for i in range(4)])
    await stopping
    assert records[-1].status == "UNAVAILABLE"
