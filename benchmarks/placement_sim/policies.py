"""The policies that are compared."""

# ruff: noqa: D102, ARG002 - the methods are those of Policy

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict

from benchmarks.placement_sim.arrivals import Trace
from benchmarks.placement_sim.memory import Memory, load_seconds
from services.router.costs import LoadCosts, Tier
from services.router.forecasts import Forecasts
from services.router.placement import decide
from services.router.plan import Demand, Held, Rules, WorkerState


class Lru:
    """Least recently used first; no prefetch."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def requested(self, model: int, memory: Memory) -> None:
        self._last[model] = memory.now

    def value(self, model: int, memory: Memory) -> float:
        return self._last[model]

    def tick(self, memory: Memory) -> None:
        pass


class Lfu:
    """Least frequently used first, uses fading with a time constant; no prefetch."""

    def __init__(self, horizon: float = 1800.0) -> None:
        self._horizon = horizon
        self._counts: defaultdict[int, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def requested(self, model: int, memory: Memory) -> None:
        self._counts[model] = self.value(model, memory) + 1.0, memory.now

    def value(self, model: int, memory: Memory) -> float:
        count, at = self._counts[model]
        return count * math.exp((at - memory.now) / self._horizon)

    def tick(self, memory: Memory) -> None:
        pass


class Gdsf:
    """GreedyDual-Size-Frequency: uses x load time / bytes above the worth of what was evicted last; no prefetch."""

    def __init__(self) -> None:
        self._uses: defaultdict[int, int] = defaultdict(int)
        self._worth: dict[int, float] = {}
        self._age = 0.0

    def requested(self, model: int, memory: Memory) -> None:
        self._uses[model] += 1
        size = memory.sizes[model]
        self._worth[model] = self._age + self._uses[model] * load_seconds(size) / size

    def value(self, model: int, memory: Memory) -> float:
        # whoever asks is about to evict: what goes is the least, and what comes starts from there
        self._age = max(self._age, min(self._worth[m] for m in memory.slots))
        return self._worth[model]

    def tick(self, memory: Memory) -> None:
        pass


class Ours:
    """The router's own forecasts and placement decision, for a fleet of one worker."""

    def __init__(self, horizon: float = 15.0, *, prefetch: bool = True, rules: Rules | None = None) -> None:
        self._horizon = horizon
        self._prefetch = prefetch
        self._rules = rules or Rules()
        self._costs = LoadCosts()
        self.forecasts = Forecasts(0.0)

    def requested(self, model: int, memory: Memory) -> None:
        self.forecasts.arrived(str(model), memory.now)

    def value(self, model: int, memory: Memory) -> float:
        size = memory.sizes[model]
        return self.forecasts.probability(str(model), memory.now, self._horizon) * load_seconds(size) / size

    def tick(self, memory: Memory) -> None:
        if not self._prefetch or memory.now % 2.0 > 1e-9:  # the router decides every two seconds
            return
        held = {
            str(m): Held(Tier.DEVICE, memory.sizes[m], int(s.busy > memory.now))
            for m, s in memory.slots.items()
            if s.ready <= memory.now
        }
        arriving = {str(m): memory.sizes[m] for m, s in memory.slots.items() if s.ready > memory.now}
        demands = [
            Demand(name, memory.sizes[int(name)], self.forecasts.probability(name, memory.now, self._horizon))
            for name in self.forecasts.names()
        ]
        worker = WorkerState("w", memory.capacity, held=held, arriving=arriving)
        for order in decide(demands, [worker], self._rules, self._costs).orders:
            if order.tier == Tier.STORE:
                memory.evict(int(order.revision))
            elif order.tier == Tier.DEVICE:
                memory.load(int(order.revision), prefetch=True)


class Oracle:
    """Knows the trace: evicts what is used last (Belady), and loads what is used next whenever the loader is free."""

    def __init__(self, trace: Trace, *, prefetch: bool = True) -> None:
        self._prefetch = prefetch
        self._uses: dict[int, list[float]] = {}
        for time, model in trace.events:
            self._uses.setdefault(model, []).append(time)

    def requested(self, model: int, memory: Memory) -> None:
        pass

    def value(self, model: int, memory: Memory) -> float:
        return -self._next(model, memory.now)

    def tick(self, memory: Memory) -> None:
        if not self._prefetch or memory.loader_free > memory.now:
            return
        away = [(self._next(m, memory.now), m) for m in self._uses if m not in memory.slots]
        soonest, model = min(away, default=(math.inf, -1))
        if soonest == math.inf:
            return
        excess = memory.used + memory.sizes[model] - memory.capacity
        victims: list[int] = []
        for candidate in sorted(memory.idle(), key=lambda m: self.value(m, memory)):
            if excess <= 0:
                break
            if self._next(candidate, memory.now) <= soonest:
                return
            victims.append(candidate)
            excess -= memory.sizes[candidate]
        if excess > 0:
            return
        for victim in victims:
            memory.evict(victim)
        memory.load(model, prefetch=True)

    def _next(self, model: int, now: float) -> float:
        uses = self._uses[model]
        place = bisect_right(uses, now)
        return uses[place] if place < len(uses) else math.inf
