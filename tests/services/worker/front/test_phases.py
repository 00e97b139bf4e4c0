"""The stretches of a request's time, over random courses of it."""

import random
from pathlib import Path

import pytest

from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2
from services.worker.front.choice import Choice
from services.worker.front.deltas import Arrival
from services.worker.front.detokenize import Detokenizer
from services.worker.front.outbox import Outbox
from services.worker.front.phases import phases
from services.worker.front.request import Request
from services.worker.front.validation import Stopping

ORDER = ["prepare", "delta fetch", "delta decode", "queue", "prefill", "decode"]


def _choice(first: float | None, last: float | None, finished: bool) -> Choice:
    choice = Choice(0, Detokenizer(lambda _: ""), Stopping((), False, 0, frozenset()))
    choice.first_token_at, choice.last_token_at, choice.finished = first, last, finished
    return choice


def _times(count: int) -> list[float]:
    return sorted(random.uniform(100, 200) for _ in range(count))


async def _request(arrived: float) -> Request:
    request = Request(1, worker_pb2.Submit(request_id="r"), Outbox(), "w")
    request.arrived = arrived
    return request


@pytest.mark.parametrize("_", range(20))
async def test_a_cold_request_that_ends_well_goes_through_all(_: int) -> None:
    arrived, prepared, asked, on_disk, finished, prefill, first, last, now = _times(9)
    request = await _request(arrived)
    arrival = Arrival("m@1", pb.TIER_STORE, 10, started=random.choice([asked, asked - 5]))
    arrival.fetched, arrival.finished = on_disk - arrival.started, finished
    arrival.folder = Path("there")
    request.prepared_at, request.asked_at, request.arrival = prepared, asked, arrival
    request.added_at, request.prefill_at = on_disk, prefill
    request.choices = {1: _choice(first, last, True), 2: _choice(first + 0.1, first + 0.2, True)}
    found = list(phases(request, now))
    assert [phase.name for phase in found] == ORDER
    assert all(phase.complete for phase in found)
    assert [phase.began for phase in found] == pytest.approx([arrived, asked, on_disk, finished, prefill, first])
    ends = [prepared, on_disk, finished, prefill, first, max(last, first + 0.2)]
    assert [phase.ended for phase in found] == pytest.approx(ends)


@pytest.mark.parametrize("reached", range(1, len(ORDER)))
async def test_a_request_that_is_cut_off_ends_in_the_phase_it_was_in(reached: int) -> None:
    arrived, prepared, on_disk, finished, prefill, first, last, now = _times(8)
    request = await _request(arrived)
    arrival = Arrival("m@1", pb.TIER_STORE, 10, started=prepared)
    if reached >= 1:
        request.prepared_at = request.asked_at = prepared
        request.arrival = arrival
    if reached >= 2:
        arrival.fetched, arrival.folder, request.added_at = on_disk - prepared, Path("there"), on_disk
    if reached >= 3:
        arrival.finished = finished
    if reached >= 4:
        request.prefill_at = prefill
    if reached >= 2:
        request.choices = {1: _choice(first if reached >= 5 else None, last if reached >= 5 else None, False)}
    *before, cut = phases(request, now)
    assert cut.name == ORDER[reached]
    assert (cut.complete, cut.ended) == (False, now)
    assert [phase.name for phase in before] == ORDER[:reached]
    assert all(phase.complete for phase in before)


async def test_a_step_that_began_before_the_news_of_its_delta_makes_no_negative_time() -> None:
    request = await _request(100.0)
    arrival = Arrival("m@1", pb.TIER_DISK, 10, started=101.0)
    arrival.fetched, arrival.finished, arrival.folder = 0.0, 102.0, Path("there")
    request.prepared_at, request.asked_at, request.arrival = 101.0, 101.0, arrival
    request.added_at, request.prefill_at = 101.0, 101.9
    request.choices = {1: _choice(102.1, 103.0, True)}
    found = {phase.name: phase for phase in phases(request, 104.0)}
    assert "delta fetch" not in found  # it was on the disk
    assert found["delta decode"].ended == 101.9
    assert found["queue"].began == found["queue"].ended == 101.9
