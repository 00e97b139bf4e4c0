"""Simulations of scheduler and residency together: turns need memory, memory needs turns, loads take their time."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.plan import Limits
from services.worker.engine.prefixes import PrefixCache
from services.worker.engine.residency import Residency
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.sequence import sequence_of
from services.worker.messages import Add, Sampling


class Worker:
    """Scheduler and residency joined as the engine joins them; one second a step.

    Args:
        limits: of the scheduler.
        sizes: bytes of each delta.
        budget: bytes of memory.
        delays: steps that inspecting and loading a delta take, used in turn.
    """

    def __init__(self, limits: Limits, sizes: dict[str, int], budget: int, delays: list[int]) -> None:
        blocks = BlockAllocator(2000, 4)
        self.scheduler = Scheduler(limits, blocks, PrefixCache(blocks, lambda revision: f"{revision} "))
        self.residency = Residency(budget, 0)
        self.sizes = sizes
        self.delays = delays
        self.work: list[tuple[int, str, str]] = []  # (steps to go, kind, delta), one at a time as the loader does
        self.now = 0.0
        self.loads = 0
        self.first: dict[int, float] = {}

    def add(self, number: int, revision: str, tokens: int, priority: int = 0) -> None:
        sampling = Sampling(max_tokens=tokens)
        add = Add(sequence=number, revision=revision, prompt=[1, 1], sampling=sampling, priority=priority)
        self.scheduler.add(sequence_of(add, number, self.now))

    def begin(self, kind: str, revision: str) -> None:
        self.work.append((self.delays[len(self.work) % len(self.delays)], kind, revision))

    def step(self) -> None:
        self._load()
        plan = self.scheduler.schedule(self.now, self.residency.resident(), self.residency.blocked())
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.revision in self.residency.resident()
            self.first.setdefault(sequence.id, self.now)
            self.scheduler.advance(chunk, 1 if chunk.samples else None)
            if sequence.generated == sequence.sampling.max_tokens:
                self.scheduler.remove(sequence)
        self.now += 1

    def _load(self) -> None:
        if self.work:
            left, kind, revision = self.work.pop(0)
            if left > 0:
                self.work.insert(0, (left - 1, kind, revision))
            elif kind == "inspect":
                self.residency.want(revision, self.sizes[revision], 1)
            else:
                self.residency.loaded(revision)
        claims = self.scheduler.claims()
        moves = self.residency.moves(claims, self.now, first=self.scheduler.turns.favoured_revision)
        for revision in moves.load:
            self.loads += 1
            self.begin("load", revision)
        for revision in sorted(claims - self.residency.entries.keys()):
            self.residency.expect(revision, pinned=False)
            self.begin("inspect", revision)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.step()
        state = {e.revision: e.state for e in self.residency.entries.values()}
        raise AssertionError(
            f"{len(self.scheduler.waiting)} sequences wait for ever: {state}, {vars(self.scheduler.turns)}"
        )


QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking a simulation takes minutes


@settings(max_examples=150, deadline=None, phases=QUICK)
@given(st.data())
def test_everyone_finishes_however_long_loads_take(data):
    sizes = {r: data.draw(st.integers(1, 4)) for r in "abcdef"}
    limits = Limits(
        running=data.draw(st.integers(1, 8)),
        step_tokens=16,
        deltas=data.draw(st.integers(1, 3)),
        wait_seconds=data.draw(st.sampled_from([0.0, 2.0, 10.0])),
    )
    delays = data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=5))
    worker = Worker(limits, sizes, data.draw(st.integers(4, 9)), delays)
    arrivals = st.tuples(st.sampled_from("abcdef"), st.integers(1, 30), st.integers(-1, 1), st.integers(0, 5))
    drawn = data.draw(st.lists(arrivals, min_size=1, max_size=24))
    for number, (revision, tokens, priority, pause) in enumerate(drawn):
        worker.add(number, revision, tokens, priority)
        for _ in range(pause):
            worker.step()
    worker.run(20_000)


def test_every_turn_is_one_load():
    """Room for one of three deltas in constant demand: 60 tokens each in turns of 2 tokens."""
    limits = Limits(running=8, step_tokens=64, deltas=4, wait_seconds=2.0)
    worker = Worker(limits, dict.fromkeys("abc", 1), 1, [2])
    for number in range(9):
        worker.add(number, "abc"[number % 3], 60)
    worker.run(2000)
    assert worker.loads <= 3 * 60 / 2
