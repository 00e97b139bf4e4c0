"""The way of a delta from the store over the disk cache into the engine's memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaserve import errors
from deltaserve.errors import DeltaServeError, InternalError, NotFoundError
from deltaserve.names import parse_revision
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from services.worker.front.backoff import Backoff
from services.worker.front.disk import DiskCache, total_bytes
from services.worker.front.reports import Transfers
from services.worker.front.revisions import PublishedDelta
from services.worker.messages import DeltaChanged, DeltaUse, Drop, Load, ToEngine

log = logging.getLogger(__name__)

# what the engine may say of a delta; every class takes a message and keywords
_CLASSES: dict[str, type[DeltaServeError]] = {
    cls.reason: cls
    for cls in (
        errors.BaseMismatchError,
        errors.DataLossError,
        errors.FormatError,
        errors.InvalidArgumentError,
        errors.PreconditionError,
        errors.StoreError,
        errors.UnsupportedModelError,
    )
}
_LOADS = 16  # measured loads that are told
_BAD_BYTES = (errors.DataLossError, errors.FormatError)


@dataclass(slots=True, eq=False)
class Arrival:
    """A delta on its way to disk or memory.

    Attributes:
        revision: `<model>@<revision>`.
        source: where it was when it was first asked for.
        bytes_total: of its files.
        to_memory: whether it goes on to memory; an order for the disk alone does not, unless someone asks meanwhile.
        bytes_done: of these, on the worker's disk.
        started: `time.monotonic()` seconds.
        fetched: seconds that its files took to the disk.
        folder: its files, once they are all on disk and the engine was told to load them.
        on_disk: set then, or when it failed.
        done: when it is in memory, or failed.
        finished: when that was.
    """

    revision: str
    source: pb.Tier.ValueType
    bytes_total: int
    to_memory: bool = True
    bytes_done: int = 0
    started: float = field(default_factory=time.monotonic)
    fetched: float = 0.0
    folder: Path | None = None
    on_disk: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    finished: float | None = None

    def eta_seconds(self, now: float) -> float | None:
        """Returns the estimated time until the last byte is on disk, None when nothing is known."""
        if not self.bytes_done or self.bytes_done >= self.bytes_total:
            return None
        return (now - self.started) * (self.bytes_total - self.bytes_done) / self.bytes_done


class Deltas:
    """Where every delta is, and the arrivals under way."""

    def __init__(
        self,
        disk: DiskCache,
        send: Callable[[ToEngine], None],
        failed: Callable[[str, DeltaServeError], None],
        measured: Callable[[wpb.LoadSample], None] = lambda _: None,
    ) -> None:
        """Orders loads with `send`; `failed` hears of every delta that could not be brought, `measured` of others."""
        self._tell_measured = measured
        self._loads: deque[wpb.LoadSample] = deque(maxlen=_LOADS)
        self._disk = disk
        self._send = send
        self._failed = failed
        self._arrivals: dict[str, Arrival] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._memory: dict[str, DeltaUse] = {}
        self._pinned: set[str] = set()
        self._backoff = Backoff()

    def tier(self, revision: str) -> pb.Tier.ValueType:
        """Returns the hottest tier that holds a revision."""
        use = self._memory.get(revision)
        if use is not None:
            return pb.TIER_DECODED if use.decoded else pb.TIER_DEVICE
        return pb.TIER_STORE if self._disk.manifest(parse_revision(revision)) is None else pb.TIER_DISK

    def bring(self, delta: PublishedDelta) -> Arrival | None:
        """Starts the way of a revision to memory, or joins the one under way; None when it is there.

        Raises what it failed with before, while it is left alone for that (see Backoff).
        """
        name = str(delta.name)
        if name in self._memory:
            return None
        arrival = self._arrivals.get(name) or self._start(delta)
        arrival.to_memory = True
        return arrival

    def cache(self, delta: PublishedDelta) -> None:
        """Starts the way of a revision to the disk, unless it is there or on its way."""
        name = str(delta.name)
        if name not in self._arrivals and self.tier(name) == pb.TIER_STORE:
            self._start(delta, to_memory=False)

    def wanted(self, delta: PublishedDelta) -> None:
        """Answers the engine, which lacks a delta that it needs. Raises as `bring`."""
        name = str(delta.name)
        self._memory.pop(name, None)
        arrival = self._arrivals.get(name)
        if arrival is None:
            self._start(delta)
            return
        arrival.to_memory = True
        if arrival.folder is not None:
            self._load(arrival.revision, arrival.folder)

    def pin(self, delta: PublishedDelta, pinned: bool) -> None:
        """Brings a revision to memory, or tells the engine anew whether one that is there is pinned."""
        name = str(delta.name)
        changed = pinned != (name in self._pinned)
        (self._pinned.add if pinned else self._pinned.discard)(name)
        if self.bring(delta) is None and changed and self._disk.manifest(delta.name) is not None:
            self._load(name, self._disk.folder(delta.name))  # the engine has it: only the pin is news

    def drop(self, revision: str) -> None:
        """Lets go of a revision in memory once it is idle."""
        self._pinned.discard(revision)
        self._send(Drop(revision))

    def changed(self, message: DeltaChanged) -> None:
        """Takes news from the engine."""
        name = message.revision
        arrival = self._arrivals.get(name)
        if message.state == "failed":
            if message.error_code in {cls.reason for cls in _BAD_BYTES}:
                self._spawn(self._disk.discard(parse_revision(name)))
            self._fail(name, _error_of(message))
            return
        if message.state == "dropped":
            self._memory.pop(name, None)
        else:
            before, decoded = self._memory.get(name), message.state == "decoded"
            in_use = before.in_use if before else 0
            self._backoff.succeeded(name)
            self._memory[name] = DeltaUse(revision=name, bytes=message.bytes, in_use=in_use, decoded=decoded)
        if arrival is not None and arrival.folder is not None:
            if message.load_seconds:
                self._measured(arrival, message.load_seconds)
            self._finish(name)

    def uses(self, uses: Collection[DeltaUse]) -> None:
        """Takes the engine's count of uses."""
        self._memory.update({use.revision: use for use in uses if use.revision in self._memory})

    def residency(self, worker: str) -> list[pb.Residency]:
        """Returns every delta above the store, in its hottest tier."""
        found = []
        for use in self._memory.values():
            tier = pb.TIER_DECODED if use.decoded else pb.TIER_DEVICE
            found.append(
                pb.Residency(worker=worker, revision=use.revision, tier=tier, bytes=use.bytes, in_use=use.in_use)
            )
        for name, size in self._disk.entries().items():
            if str(name) not in self._memory:
                found.append(pb.Residency(worker=worker, revision=str(name), tier=pb.TIER_DISK, bytes=size))
        return found

    def transfers(self) -> Transfers:
        """Returns what is on its way, and what that takes."""
        arriving = [
            wpb.Arriving(revision=a.revision, bytes_total=a.bytes_total, bytes_done=a.bytes_done, to_memory=a.to_memory)
            for a in self._arrivals.values()
        ]
        return Transfers(arriving, list(self._loads), self._disk.budget_bytes, self._disk.used_bytes)

    def engine_lost(self, error: DeltaServeError) -> None:
        """Forgets what was in the engine's memory; arrivals under way fail."""
        self._memory.clear()
        for name in list(self._arrivals):
            self._give_up(name, error)

    async def close(self) -> None:
        """Stops all downloads."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, delta: PublishedDelta, to_memory: bool = True) -> Arrival:
        name = str(delta.name)
        self._backoff.check(name, time.monotonic())
        arrival = Arrival(name, self.tier(name), total_bytes(delta.manifest), to_memory)
        self._arrivals[name] = arrival
        self._spawn(self._bring(arrival, delta))
        return arrival

    async def _bring(self, arrival: Arrival, delta: PublishedDelta) -> None:
        try:
            with self._disk.holding(delta.name):
                folder = await self._disk.fetch(
                    delta.name, delta.manifest, delta.raw, lambda done: _note(arrival, done)
                )
                arrival.bytes_done = arrival.bytes_total
                arrival.fetched = time.monotonic() - arrival.started
                if not arrival.to_memory:
                    self._finish(arrival.revision)
                    return
                arrival.folder = folder
                self._load(arrival.revision, arrival.folder)
                arrival.on_disk.set()
                await arrival.done.wait()
        except DeltaServeError as error:
            log.warning("delta %s did not arrive: %s", arrival.revision, error.message)
            self._fail(arrival.revision, error)
        except OSError as error:
            log.warning("delta %s did not arrive", arrival.revision, exc_info=error)
            self._fail(arrival.revision, InternalError(f"cannot cache {arrival.revision} on disk: {error}"))

    def _measured(self, arrival: Arrival, load_seconds: float) -> None:
        seconds = load_seconds + (arrival.fetched if arrival.source == pb.TIER_STORE else 0.0)
        sample = wpb.LoadSample(source=arrival.source, bytes=arrival.bytes_total)
        sample.time.FromNanoseconds(int(seconds * 1e9))
        self._loads.append(sample)
        self._tell_measured(sample)

    def _load(self, name: str, folder: Path) -> None:
        self._send(Load(name, str(folder), name in self._pinned))

    def _fail(self, name: str, error: DeltaServeError) -> None:
        if not isinstance(error, errors.QuotaError):  # that says nothing of the delta
            seconds = self._backoff.failed(name, error, time.monotonic())
            if seconds:
                log.warning("delta %s failed again and is left alone for %g s: %s", name, seconds, error.message)
        self._give_up(name, error)

    def _give_up(self, name: str, error: DeltaServeError) -> None:
        self._memory.pop(name, None)
        self._finish(name)
        self._failed(name, error)

    def _finish(self, name: str) -> None:
        arrival = self._arrivals.pop(name, None)
        if arrival is not None:
            arrival.finished = time.monotonic()
            arrival.on_disk.set()
            arrival.done.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _note(arrival: Arrival, done: int) -> None:
    arrival.bytes_done = done


def _error_of(message: DeltaChanged) -> DeltaServeError:
    if message.error_code == errors.QuotaError.reason:
        return errors.QuotaError(message.error, subject="worker memory for deltas")
    if message.error_code == NotFoundError.reason:
        return NotFoundError(message.error, kind="revision", name=message.revision)
    return _CLASSES.get(message.error_code, InternalError)(message.error)
