"""Sends a schedule. Arrivals never wait for answers: a request that is due is sent, however many are under way."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltaserve.bench.recorder import Recorder
from deltaserve.bench.records import CANCELLED, OK, Record
from deltaserve.bench.wire import AnswerError, Wire
from deltaserve.bench.workload import Planned
from deltaserve.errors import DeltaServeError

_TELL_SECONDS = 0.5


@dataclass(slots=True)
class Progress:
    """How far a run is: requests sent, ended, and of these failed."""

    sent: int = 0
    ended: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What one generator process did.

    Attributes:
        records: one a request, in the order of its schedule.
        cpu: share of one core that it used until its last answer; near 1 it is the bottleneck itself.
    """

    records: list[Record]
    cpu: float


async def drive(
    planned: Sequence[Planned],
    wire: Wire,
    start: float,
    timeout_seconds: float,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Share:
    """Sends every request when it is due and waits for the last answer.

    Args:
        planned: the schedule, by time.
        wire: opened.
        start: monotonic time that the schedule counts from.
        timeout_seconds: a request is given up so long after it was sent, with the status `TIMEOUT`.
        tell: called from time to time.
    """
    progress = Progress()

    async def one(request: Planned) -> Record:
        progress.sent += 1
        record = await _ask(request, wire, start, timeout_seconds)
        progress.ended += 1
        progress.failed += record.status not in {OK, CANCELLED}
        return record

    telling = asyncio.create_task(_tell(progress, tell))
    gc.collect()
    gc.freeze()  # a collection that walks the whole schedule would stop the clock for everybody
    began, spent = time.monotonic(), time.process_time()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for request in planned:
                # also when it is due already: what has arrived meanwhile must be read too
                await asyncio.sleep(max(0.0, start + request.at - time.monotonic()))
                tasks.append(group.create_task(one(request)))
    finally:
        telling.cancel()
        gc.unfreeze()
    cpu = (time.process_time() - spent) / max(time.monotonic() - began, 1e-9)
    tell(progress)
    return Share([task.result() for task in tasks], cpu)


async def _ask(request: Planned, wire: Wire, start: float, timeout_seconds: float) -> Record:
    recorder = Recorder(request, start)
    try:
        async with asyncio.timeout(timeout_seconds):
            await wire.ask(request, recorder)
    except TimeoutError:
        return recorder.end("TIMEOUT")
    except DeltaServeError as error:
        return recorder.end(error.code.name)
    except AnswerError as error:
        return recorder.end(error.status)
    except OSError as error:
        return recorder.end(type(error).__name__)
    return recorder.end()


async def _tell(progress: Progress, tell: Callable[[Progress], None]) -> None:
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        tell(progress)
