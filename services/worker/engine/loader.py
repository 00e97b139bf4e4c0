"""The thread that brings deltas to memory, off the path of the steps."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from deltaserve.delta.manifest import Manifest
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import DeltaServeError, InternalError
from services.worker.engine.deltas import DeltaBuilder, DeltaWeights
from services.worker.engine.gemm import Matrix


@dataclass(frozen=True, slots=True)
class Inspected:
    """A delta's files are well-formed and made for the base; bytes it will take."""

    revision: str
    size: int
    decoded_size: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A delta is in memory."""

    delta: DeltaWeights
    seconds: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """The merged weights of a delta are ready to become DeltaWeights.merged."""

    revision: str
    merged: dict[str, Matrix]


@dataclass(frozen=True, slots=True)
class Failed:
    """A delta could not be inspected, loaded or decoded."""

    revision: str
    error: DeltaServeError


Event = Inspected | Loaded | Decoded | Failed


class DeltaLoader(Protocol):
    """What brings deltas to memory; one delta at a time, in the order of the calls."""

    def inspect(self, revision: str, folder: Path) -> None:
        """Opens and checks the files of a delta."""

    def load(self, revision: str) -> None:
        """Brings an inspected delta to memory."""

    def decode(self, delta: DeltaWeights) -> None:
        """Makes the merged weights of a loaded delta."""

    def unmerge(self, revision: str) -> None:
        """Notes that the merged weights of a delta are forgotten: of use where others hold parts of it."""

    def forget(self, revision: str) -> None:
        """Lets go of a delta, or closes its files when it was inspected and shall not be loaded after all."""

    def events(self) -> list[Event]:
        """Returns what has happened since the last call."""


class Loader:
    """Works on one delta at a time; `events` tells what came of it.

    Args:
        builder: makes deltas of the base.
        check: raises BaseMismatchError or another DeltaServeError for a manifest that does not belong to the base.
        wake: called from the thread after each event.
    """

    def __init__(self, builder: DeltaBuilder, check: Callable[[Manifest], None], wake: Callable[[], None]) -> None:
        self._builder = builder
        self._check = check
        self._wake = wake
        self._readers: dict[str, tuple[DeltaReader, float]] = {}  # inspected, with the seconds that took
        self._tasks: queue.SimpleQueue[tuple[str, Callable[[], Event]]] = queue.SimpleQueue()
        self._events: deque[Event] = deque()
        threading.Thread(target=self._work, name="loader", daemon=True).start()

    def inspect(self, revision: str, folder: Path) -> None:
        """Opens and checks the files of a delta."""
        self._tasks.put((revision, lambda: self._inspect(revision, folder)))

    def load(self, revision: str) -> None:
        """Brings an inspected delta to memory."""
        self._tasks.put((revision, lambda: self._load(revision)))

    def decode(self, delta: DeltaWeights) -> None:
        """Makes the merged weights of a loaded delta."""
        self._tasks.put((delta.revision, lambda: Decoded(delta.revision, self._builder.merge(delta))))

    def unmerge(self, revision: str) -> None:
        """Does nothing: nobody else holds parts of the delta."""

    def fetch(self, revision: str, folder: Path) -> None:
        """Inspects and loads a delta at once, of which another rank has checked that it belongs to the base."""
        self._tasks.put((revision, lambda: self._fetch(revision, folder)))

    def forget(self, revision: str) -> None:
        """Closes the files of a delta that was inspected and shall not be loaded after all."""
        self._readers.pop(revision, None)

    def events(self) -> list[Event]:
        """Returns what has happened since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def _inspect(self, revision: str, folder: Path) -> Event:
        began = time.perf_counter()
        reader = DeltaReader.open(folder, verify=True)
        self._check(reader.manifest)
        size, decoded_size = self._builder.sizes(reader.manifest)
        self._readers[revision] = (reader, time.perf_counter() - began)
        return Inspected(revision, size, decoded_size)

    def _fetch(self, revision: str, folder: Path) -> Event:
        began = time.perf_counter()
        reader = DeltaReader.open(folder, verify=False)  # what is read is checked then
        return Loaded(self._builder.build(reader, revision), time.perf_counter() - began)

    def _load(self, revision: str) -> Event:
        reader, seconds = self._readers.pop(revision)
        began = time.perf_counter()
        delta = self._builder.build(reader, revision)
        return Loaded(delta, seconds + time.perf_counter() - began)

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            revision, task = self._tasks.get()
            try:
                event = task()
            except DeltaServeError as error:
                event = Failed(revision, error)
            except Exception as error:  # noqa: BLE001 - a bad delta must not end the thread that loads all others
                event = Failed(revision, InternalError(f"delta {revision} cannot be loaded: {error!r}"))
            self._events.append(event)
            self._wake()
