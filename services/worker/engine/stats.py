"""Tells the front how the engine is, seldom enough not to matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from services.worker.engine.delta_cache import DeltaCache
from services.worker.engine.pace import Pace
from services.worker.engine.plan import Plan
from services.worker.engine.scheduler import Scheduler
from services.worker.messages import FromEngine, Stats, Totals

INTERVAL_SECONDS = 0.25


class StatsReporter:
    """Sends Stats at most every INTERVAL_SECONDS while they change, and at once when the engine goes idle."""

    def __init__(
        self, scheduler: Scheduler, pace: Pace, deltas: DeltaCache, send: Callable[[FromEngine], None]
    ) -> None:
        self._scheduler = scheduler
        self._pace = pace
        self._deltas = deltas
        self._send = send
        self._sent: Stats | None = None
        self._due = 0.0
        self._totals = Totals()

    def planned(self, plan: Plan) -> None:
        """Counts what a step is to compute."""
        totals = self._totals
        totals.steps += bool(plan.chunks)
        totals.preempted += plan.preempted
        revisions = set()
        for chunk in plan.chunks:
            if chunk.start >= chunk.sequence.prompt_length:
                totals.decode_tokens += chunk.length
            else:
                totals.prefill_tokens += chunk.length
            if chunk.sequence.revision:
                totals.delta_rows += chunk.length
                revisions.add(chunk.sequence.revision)
        totals.delta_groups += len(revisions)

    def step(self, now: float) -> None:
        """Reports, if it is time to, after a step that began at `now`."""
        if now < self._due and not self._scheduler.idle:
            return
        stats = self._stats()
        if stats != self._sent:
            self._send(stats)
            self._sent = stats
        self._due = now + INTERVAL_SECONDS

    def _stats(self) -> Stats:
        in_use = Counter(s.revision for s in self._scheduler.running)
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_blocks_free=self._scheduler.blocks.free,
            delta_bytes_used=self._deltas.residency.used(),
            step_seconds=self._pace.step_seconds,
            prefix_token_seconds=self._pace.slopes()[1] if self._scheduler.prefixes.enabled else 0.0,
            totals=msgspec.structs.replace(
                self._totals, gave_way=self._scheduler.turns.given_up, evicted=self._deltas.evicted
            ),
            deltas=self._deltas.uses(lambda revision: in_use[revision]),
        )
