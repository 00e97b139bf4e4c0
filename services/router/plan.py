"""What placement is told and what it decides: plain data, of no wire and no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.router.costs import Tier


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be tuned.

    Attributes:
        prefetch_probability: least probability at which a revision is brought to memory before it is asked for.
        disk_probability: the same for a worker's disk.
        keep: how many times its worth what is in memory counts; a challenger must be better by as much.
        share: of a worker's places in a step that one revision may take before it gets another copy.
        loads: most loads under way on a worker for placement to order another.
    """

    prefetch_probability: float = 0.2
    disk_probability: float = 0.05
    keep: float = 1.5
    share: float = 0.5
    loads: int = 1


class Demand(NamedTuple):
    """What is expected of one revision.

    Attributes:
        revision: `<model>@<revision>`.
        bytes: of the packed delta.
        probability: of a request soon.
        rate: requests a second to provide for.
        pinned: whether a user wants it in memory everywhere, whatever the demand.
    """

    revision: str
    bytes: int
    probability: float = 0.0
    rate: float = 0.0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A delta above the store on one worker."""

    tier: Tier
    bytes: int
    in_use: int = 0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker reported.

    Attributes:
        name: its own.
        budget: bytes that deltas may take in memory.
        disk_free: bytes that deltas may still take on disk.
        places: requests that a step holds.
        service_seconds: that a request keeps its place.
        held: revisions above the store.
        arriving: revisions on their way to memory, with their bytes.
        to_disk: revisions on their way to disk only.
    """

    name: str
    budget: int
    disk_free: int = 0
    places: int = 1
    service_seconds: float = 1.0
    held: Mapping[str, Held] = field(default_factory=dict)
    arriving: Mapping[str, int] = field(default_factory=dict)
    to_disk: frozenset[str] = frozenset()

    def in_memory(self, revision: str) -> bool:
        """Whether the revision can run here without a load."""
        held = self.held.get(revision)
        return held is not None and held.tier >= Tier.DEVICE


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to tell a worker: bring a revision to a tier; Tier.STORE lets go of it."""

    worker: str
    revision: str
    tier: Tier
    reason: str


class Placed(NamedTuple):
    """Where one revision should be.

    Attributes:
        demand: as it was given.
        worth: seconds a gigabyte that keeping it in memory is expected to save.
        copies: how many were wanted.
        memory: workers that should hold it in memory, those that use it or bring it now first.
        disk: a worker that should have it on disk; empty: none in particular.
    """

    demand: Demand
    worth: float
    copies: int
    memory: tuple[str, ...] = ()
    disk: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """One round of placement: revisions by falling worth, and orders."""

    placed: Mapping[str, Placed] = field(default_factory=dict)
    orders: Sequence[Order] = ()

    def worths(self, worker: WorkerState) -> dict[str, float]:
        """Returns the worth of every delta in the worker's memory: what it should evict last is worth most."""
        return {
            revision: self.placed[revision].worth if revision in self.placed else 0.0
            for revision, held in worker.held.items()
            if held.tier >= Tier.DEVICE
        }
