"""What the next step computes (pure): continuous batching with chunked prefill over a paged KV cache.

Rules, in order:
- A step has at most `step_tokens` rows of at most `running` sequences over at most `deltas` distinct deltas.
- Running sequences go first: one row for each that decodes, then chunks of prompts, in order: by priority, then those
  whose model was served the fewest tokens (`fairness`), then by arrival.
- Waiting sequences are admitted in order when their delta is in memory and their whole prompt fits the free blocks.
  Those whose delta is away are passed by; those that lack blocks are not, so that long prompts get in.
- What others with the same model and beginning have computed is not computed again (`prefixes`).
- When a running sequence needs a block and none is free, blocks of sequences that do not run are taken first, then the
  running one that is last in order is preempted; both compute their tokens again later.
- A sequence passed by for longer than `wait_seconds` makes others give way (`turns`): they stop but keep their blocks.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Collection

from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.fairness import OUTPUT_WEIGHT, PROMPT_WEIGHT, Order, TokenCounters, in_order
from services.worker.engine.plan import Chunk, Limits, Plan
from services.worker.engine.prefixes import PrefixCache
from services.worker.engine.sequence import Sequence
from services.worker.engine.turns import Turns


class Scheduler:
    """Holds all sequences of the engine and decides, step by step, which of their tokens are computed."""

    def __init__(self, limits: Limits, blocks: BlockAllocator, prefixes: PrefixCache) -> None:
        self.limits = limits
        self.blocks = blocks
        self.prefixes = prefixes
        self.served = TokenCounters()
        self.turns = Turns(limits.deltas, limits.wait_seconds)
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []  # by rank
        self._sequences: dict[int, Sequence] = {}
        self._interest: Counter[str] = Counter()  # sequences of each delta, paused ones left out
        self._deadlines: list[tuple[float, int, bool]] = []  # heap of (time, sequence, only if not started)

    def add(self, sequence: Sequence) -> None:
        """Takes a new sequence."""
        self._sequences[sequence.id] = sequence
        self._wait(sequence)
        self._interest[sequence.revision] += 1
        if sequence.deadline is not None:
            heapq.heappush(self._deadlines, (sequence.deadline, sequence.id, False))
        if sequence.prefill_deadline is not None:
            heapq.heappush(self._deadlines, (sequence.prefill_deadline, sequence.id, True))

    def get(self, sequence_id: int) -> Sequence | None:
        """Returns a sequence that is not finished, None for an unknown one."""
        return self._sequences.get(sequence_id)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, finished or aborted, and frees its blocks."""
        del self._sequences[sequence.id]
        self._leave(sequence)
        self._free(sequence)
        if not sequence.paused:
            self._lose_interest(sequence.revision)
        if sequence is self.turns.favoured:
            self.turns.end_favour()
        if self.idle:
            self.served.clear()

    def pause(self, sequence: Sequence, paused: bool, now: float) -> None:
        """Holds a sequence back or lets it go on. Its blocks stay its own unless others run out of blocks."""
        if sequence.paused == paused:
            return
        sequence.paused = paused
        if not paused:
            sequence.waiting_since = now
            self._interest[sequence.revision] += 1
            return
        self._lose_interest(sequence.revision)
        if sequence in self.running:
            self._suspend(sequence, now)
        if sequence is self.turns.favoured:
            self.turns.end_favour()

    def schedule(self, now: float, resident: Collection[str], blocked: Collection[str] = ()) -> Plan:
        """Plans the next step.

        Args:
            now: seconds of the clock that deadlines use.
            resident: deltas that are in memory and may run.
            blocked: deltas whose load waits until others leave memory.
        """
        plan = Plan()
        self._expire(plan, now)
        self._give_way(resident, blocked, now)
        rows = self._go_on(plan, now)
        if not plan.preempted:
            self._admit(plan, rows, resident, now)
        plan.deltas = len(self.turns.active)
        return plan

    def advance(self, chunk: Chunk, token: int | None) -> None:
        """Notes that a chunk is computed and, if it samples, which token came out."""
        sequence = chunk.sequence
        sequence.computed = chunk.start + chunk.length
        self.prefixes.publish(sequence)
        if token is not None:
            sequence.tokens.append(token)
            sequence.charged += 1
            self.served.charge(sequence.revision, OUTPUT_WEIGHT)
            self.turns.generated(sequence.revision)

    def claims(self) -> set[str]:
        """Returns the deltas that sequences run or wait for, those that gave way left out: they must stay in memory."""
        return {revision for revision in self._interest if revision} - self.turns.yielded

    def of_revision(self, revision: str) -> list[Sequence]:
        """Returns all sequences of a delta."""
        return [s for s in self._sequences.values() if s.revision == revision]

    @property
    def idle(self) -> bool:
        """Whether there is no sequence at all."""
        return not self._sequences

    def _expire(self, plan: Plan, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, sequence_id, unless_started = heapq.heappop(self._deadlines)
            sequence = self._sequences.get(sequence_id)
            if sequence is None or (unless_started and sequence.started):
                continue
            self.remove(sequence)
            plan.expired.append(sequence)

    def _give_way(self, resident: Collection[str], blocked: Collection[str], now: float) -> None:
        starving = [s for s in self.waiting if self.turns.starves(s, now)]
        for sequence in sorted(starving, key=lambda s: (s.rank[0], s.waiting_since)):
            if self._help(sequence, resident, blocked, now):
                return

    def _help(self, starving: Sequence, resident: Collection[str], blocked: Collection[str], now: float) -> bool:
        """Makes one delta or sequence give way to `starving`; returns whether one did."""
        favoured = self.turns.favoured
        if (favoured is not None and favoured is not starving) or starving.revision in self.turns.yielded:
            return False
        revision = starving.revision
        if revision in blocked:
            candidates = [r for r in self._interest if r in resident and self._may_yield(r, starving)]
        elif revision and revision not in resident:
            return False
        elif self.turns.lacks_turn(starving):
            candidates = [r for r in self.turns.active if self._may_yield(r, starving)]
        else:
            return self._give_place(starving, now)
        loser = self.turns.give_way(starving, candidates, now)
        for sequence in [s for s in self.running if s.revision == loser]:
            self._suspend(sequence, now)
        return loser is not None

    def _may_yield(self, revision: str, starving: Sequence) -> bool:
        """Whether a delta may give way: to nobody of lower priority, and when it only waits, to nobody behind it.

        One that is held back cannot run before the favoured has: if it kept its memory, both would wait for ever.
        """
        if not revision:
            return False
        if self.turns.held_back(revision):
            return True
        if self.turns.has_turn(revision):
            return all(s.rank[0] >= starving.rank[0] for s in self.running if s.revision == revision)
        return all(s.rank > starving.rank for s in self.waiting if s.revision == revision and not s.paused)

    def _give_place(self, starving: Sequence, now: float) -> bool:
        if len(self.running) < self.limits.running:
            return False
        last = max(self.running, key=self._order)
        if self._order(last) < self._order(starving):
            return False
        self._suspend(last, now)
        return True

    def _order(self, sequence: Sequence) -> Order:
        """Who goes first: by priority, then by what its model was served, then by arrival."""
        priority, arrival = sequence.rank
        return priority, self.served.of(sequence.revision, priority), arrival

    def _go_on(self, plan: Plan, now: float) -> int:
        """Plans the running sequences; returns how many rows are left."""
        rows = self.limits.step_tokens
        for sequence in sorted(self.running, key=lambda s: (s.todo > 1, self._order(s))):
            preempted = not sequence.blocks  # a moment ago
            if rows and not preempted and self._grow(plan, sequence, now):
                rows -= plan.compute(sequence, rows)
        return rows

    def _grow(self, plan: Plan, sequence: Sequence, now: float) -> bool:
        """Gives a running sequence the blocks for all its tokens; returns False when it had to be preempted itself."""
        need = self.blocks.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
        while need > self.blocks.free:
            holder = next((s for s in reversed(self.waiting) if s.blocks), None)
            if holder is None:
                holder = max(self.running, key=self._order)
                self._suspend(holder, now)
                plan.preempted += 1
            self._free(holder)
            if holder is sequence:
                return False
        sequence.blocks += self.blocks.allocate(need)
        return True

    def _admit(self, plan: Plan, rows: int, resident: Collection[str], now: float) -> None:
        if not rows or len(self.running) >= self.limits.running:
            return
        ready = [s for s in self.waiting if not s.paused and (not s.revision or s.revision in resident)]
        for sequence in in_order(ready, self._order, self.turns.may_start):
            if not rows or len(self.running) >= self.limits.running or not self._make_room(sequence, resident):
                return
            self._run(plan, sequence, now)
            rows -= plan.compute(sequence, rows)

    def _make_room(self, sequence: Sequence, resident: Collection[str]) -> bool:
        """Gives a waiting sequence blocks for all its tokens if that leaves one for every running sequence."""
        if self.prefixes.is_stale(sequence):
            self._free(sequence)
        if not sequence.blocks:
            self.prefixes.reuse(sequence)
        need = self.blocks.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
        reserve = len(self.running)
        for holder in reversed(self.waiting):
            if need + reserve <= self.blocks.free:
                break
            if holder.blocks and self._is_behind(holder, sequence, resident):
                self._free(holder)
        if need + reserve > self.blocks.free:
            return False
        sequence.blocks += self.blocks.allocate(need)
        return True

    def _is_behind(self, holder: Sequence, sequence: Sequence, resident: Collection[str]) -> bool:
        """Whether a sequence that does not run must lend its blocks to one that can."""
        away = bool(holder.revision) and holder.revision not in resident
        return (
            self._order(holder) > self._order(sequence)
            or holder.paused
            or away
            or self.turns.held_back(holder.revision)
        )

    def _run(self, plan: Plan, sequence: Sequence, now: float) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self.turns.started(sequence, now)
        self.served.admitted(sequence.revision, sequence.rank[0])
        fresh = len(sequence.tokens) - max(sequence.computed, sequence.charged)  # what is computed again costs nothing
        self.served.charge(sequence.revision, PROMPT_WEIGHT * max(0, fresh))
        sequence.charged = len(sequence.tokens)
        if not sequence.started:
            sequence.started = True
            plan.started.append(sequence)

    def _suspend(self, sequence: Sequence, now: float) -> None:
        self._leave(sequence)
        sequence.waiting_since = now
        self._wait(sequence)

    def _wait(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda s: s.rank)

    def _leave(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
            self.turns.stopped(sequence)
        else:
            self.waiting.remove(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = 0

    def _lose_interest(self, revision: str) -> None:
        self._interest[revision] -= 1
        if not self._interest[revision]:
            del self._interest[revision]
