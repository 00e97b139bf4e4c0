"""Simulates one worker: requests, a memory of so many bytes, one loader that brings one delta at a time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.placement_sim.arrivals import Trace

LOAD_SECONDS, BYTES_PER_SECOND = 0.02, 1e9  # of a delta from disk
SERVICE_SECONDS = 5.0  # a request uses its delta for so long
TICK_SECONDS = 2.0


@dataclass(slots=True)
class Slot:
    """A delta in memory, or on its way: complete at `ready`, in use until `busy`."""

    ready: float
    busy: float = 0.0
    prefetched: bool = False  # and not used yet


@dataclass(slots=True)
class Outcome:
    """What a policy made of a trace."""

    requests: int = 0
    hits: int = 0
    cold_seconds: float = 0.0
    loaded: int = 0
    prefetched: int = 0
    wasted: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of requests that found their delta complete in memory."""
        return self.hits / max(1, self.requests)


@dataclass(slots=True)
class Memory:
    """The state that policies see.

    Attributes:
        sizes: bytes of each model's delta.
        capacity: bytes in all.
        slots: by model.
        loader_free: when the loader has done what it was asked for.
        now: seconds.
    """

    sizes: Sequence[int]
    capacity: int
    slots: dict[int, Slot] = field(default_factory=dict)
    used: int = 0
    loader_free: float = 0.0
    now: float = 0.0
    outcome: Outcome = field(default_factory=Outcome)

    def idle(self) -> list[int]:
        """Returns the models that may be evicted."""
        return [m for m, slot in self.slots.items() if slot.ready <= self.now and slot.busy <= self.now]

    def evict(self, model: int) -> None:
        """Takes a model out."""
        slot = self.slots.pop(model)
        self.used -= self.sizes[model]
        if slot.prefetched:
            self.outcome.wasted += self.sizes[model]

    def load(self, model: int, *, prefetch: bool = False) -> float:
        """Begins a load, for which there must be room; returns when it will be complete."""
        seconds = load_seconds(self.sizes[model])
        self.loader_free = max(self.now, self.loader_free) + seconds
        self.slots[model] = Slot(self.loader_free, prefetched=prefetch)
        self.used += self.sizes[model]
        self.outcome.loaded += self.sizes[model]
        self.outcome.prefetched += self.sizes[model] if prefetch else 0
        return self.loader_free


class Policy(Protocol):
    """Decides what leaves, and what comes before it is asked for."""

    def requested(self, model: int, memory: Memory) -> None:
        """Learns of a request, before it is served."""

    def value(self, model: int, memory: Memory) -> float:
        """Returns what keeping an idle model is worth: the least goes first."""

    def tick(self, memory: Memory) -> None:
        """May evict and prefetch; called every TICK_SECONDS and whenever a load is complete."""


def load_seconds(size: int) -> float:
    """Seconds that the loader takes for so many bytes."""
    return LOAD_SECONDS + size / BYTES_PER_SECOND


def simulate(trace: Trace, sizes: Sequence[int], capacity: int, policy: Policy, warm_up: float = 0.1) -> Outcome:
    """Runs a trace; the first `warm_up` of its time is not counted."""
    memory = Memory(sizes, capacity)
    counted_from = trace.seconds * warm_up
    tick, pending = TICK_SECONDS, [0.0]
    counting = False
    for time, model in trace.events:
        while min(tick, pending[0] if pending else tick) <= time:
            memory.now = min(tick, pending[0] if pending else tick)
            if pending and pending[0] <= tick:
                heapq.heappop(pending)
            else:
                tick += TICK_SECONDS
            policy.tick(memory)
            if memory.loader_free > memory.now and memory.loader_free not in pending:
                heapq.heappush(pending, memory.loader_free)
        memory.now = time
        if not counting and time >= counted_from:
            counting, memory.outcome = True, Outcome()
            for slot in memory.slots.values():
                slot.prefetched = False
        _serve(memory, model, policy)
        if memory.loader_free > time and memory.loader_free not in pending:
            heapq.heappush(pending, memory.loader_free)
    memory.outcome.wasted += sum(sizes[m] for m, s in memory.slots.items() if s.prefetched)
    return memory.outcome


def _serve(memory: Memory, model: int, policy: Policy) -> None:
    outcome, now = memory.outcome, memory.now
    policy.requested(model, memory)
    outcome.requests += 1
    slot = memory.slots.get(model)
    if slot is None:
        make_room(memory, memory.sizes[model], policy)
        ready = memory.load(model)
        slot = memory.slots[model]
    else:
        ready = slot.ready
    outcome.hits += ready <= now
    outcome.cold_seconds += max(0.0, ready - now)
    slot.busy = max(slot.busy, max(now, ready) + SERVICE_SECONDS)
    slot.prefetched = False


def make_room(memory: Memory, size: int, policy: Policy) -> None:
    """Evicts idle models by value; what is in use may make the memory overflow, as a queue would make it wait."""
    idle = sorted(memory.idle(), key=lambda m: policy.value(m, memory), reverse=True)
    while memory.used + size > memory.capacity and idle:
        memory.evict(idle.pop())
