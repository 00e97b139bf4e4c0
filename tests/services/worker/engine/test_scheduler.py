"""Simulations of the scheduler: no torch, no clock, one second a step unless said otherwise."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.plan import Chunk, Limits, Plan
from services.worker.engine.prefixes import PrefixCache
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.sequence import Sequence, sequence_of
from services.worker.messages import Add, Sampling

LIMITS = Limits(running=4, step_tokens=16, deltas=2, wait_seconds=5.0)


class World:
    """A scheduler with sequences that each generate a given number of tokens."""

    def __init__(self, limits: Limits = LIMITS, blocks: int = 20, block_size: int = 4, *, caching: bool = True) -> None:
        allocator = BlockAllocator(blocks, block_size)
        self.scheduler = Scheduler(limits, allocator, PrefixCache(allocator, self.identity, enabled=caching))
        self.resident: set[str] = {"a", "b", "c", "d"}
        self.blocked: set[str] = set()
        self.contents: dict[
            tuple[int, int], int
        ] = {}  # what is in the KV cache: by block and place, a hash of the past
        self.versions: dict[str, int] = {}
        self.now = 0.0
        self.added = 0
        self.first: dict[int, float] = {}
        self.finished: list[int] = []
        self.expired: list[int] = []

    def identity(self, revision: str) -> str:
        return f"{revision} with contents {self.versions.get(revision, 0)}"

    def add(self, revision: str = "", prompt: int = 3, tokens: int = 3, first: int = -1, **options) -> Sequence:
        self.added += 1
        add = Add(
            sequence=self.added,
            revision=revision,
            prompt=[self.added if first < 0 else first] * prompt,
            sampling=Sampling(max_tokens=tokens),
            **options,
        )
        sequence = sequence_of(add, self.added, self.now)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Plan:
        plan = self.scheduler.schedule(self.now, self.resident, self.blocked)
        self.check(plan)
        self.expired += [s.id for s in plan.expired]
        for chunk in plan.chunks:
            self.first.setdefault(chunk.sequence.id, self.now)
            self.compute(chunk)
            self.scheduler.advance(chunk, 1 if chunk.samples else None)
            if chunk.sequence.generated == chunk.sequence.sampling.max_tokens:
                self.scheduler.remove(chunk.sequence)
                self.finished.append(chunk.sequence.id)
        self.now += 1
        return plan

    def compute(self, chunk: Chunk) -> None:
        """Reads keys and values of what came before the chunk, which must be those of its own past; writes its own."""
        sequence, size = chunk.sequence, self.scheduler.blocks.block_size
        past = hash(self.identity(sequence.revision))
        for place, token in enumerate(sequence.tokens[: chunk.start + chunk.length]):
            past = hash((past, token))
            slot = (sequence.blocks[place // size], place % size)
            if place < chunk.start:
                assert self.contents[slot] == past
            else:
                self.contents[slot] = past

    def run(self, steps: int = 500) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.step()
        pytest.fail(f"{self.scheduler.running} and {self.scheduler.waiting} never finish")

    def check(self, plan: Plan) -> None:
        scheduler, limits = self.scheduler, self.scheduler.limits
        assert sum(c.length for c in plan.chunks) <= limits.step_tokens
        assert len(plan.chunks) == len({c.sequence.id for c in plan.chunks}) <= limits.running
        assert len({c.sequence.revision for c in plan.chunks} - {""}) <= limits.deltas
        assert len(scheduler.running) <= limits.running
        sequences = [*scheduler.running, *scheduler.waiting]
        held = Counter(block for s in sequences for block in s.blocks)
        for sequence in sequences:
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            assert all(held[block] == 1 for block in sequence.blocks[sequence.published :])
        assert len(held) + scheduler.blocks.free == scheduler.blocks.count - 1
        assert scheduler.waiting == sorted(scheduler.waiting, key=lambda s: s.rank)
        for chunk in plan.chunks:
            assert chunk.length > 0
            assert chunk.start == chunk.sequence.computed
            assert chunk.sequence in scheduler.running
            assert not chunk.sequence.paused
            assert chunk.sequence.revision in self.resident | {""}
            assert chunk.start + chunk.length <= len(chunk.sequence.blocks) * scheduler.blocks.block_size


def test_one_step_mixes_decode_and_chunked_prefill():
    world = World()
    short = world.add("a", prompt=2, tokens=9)
    world.step()
    long = world.add("", prompt=40, tokens=1)
    plan = world.step()
    assert [(c.sequence.id, c.length) for c in plan.chunks] == [(short.id, 1), (long.id, 15)]
    assert [c.samples for c in plan.chunks] == [True, False]
    world.run()


def test_priority_goes_first_then_arrival():
    world = World(Limits(running=1, step_tokens=16, deltas=1, wait_seconds=100))
    ids = [world.add().id, world.add(priority=1).id, world.add().id, world.add(priority=1).id]
    world.run()
    assert world.finished == [ids[1], ids[3], ids[0], ids[2]]


def test_requests_of_resident_deltas_pass_those_that_are_away():
    world = World()
    away, here = world.add("z"), world.add("a")
    plan = world.step()
    assert [c.sequence for c in plan.chunks] == [here]
    world.resident.add("z")
    assert [c.sequence for c in world.step().chunks] == [here, away]


def test_abort_and_finish_free_all_blocks():
    world = World()
    sequences = [world.add("a", prompt=5, tokens=50) for _ in range(3)]
    world.step()
    for sequence in sequences:
        world.scheduler.remove(sequence)
    assert world.scheduler.blocks.free == world.scheduler.blocks.count - 1
    assert world.scheduler.idle
    assert not world.scheduler.claims()


def test_deadlines_end_waiting_and_running_sequences():
    world = World()
    running = world.add(tokens=50, deadline=3.0)
    waiting = world.add("z", deadline=2.0)
    unstarted = world.add("z", prefill_deadline=1.0)
    started = world.add(tokens=50, prefill_deadline=1.0)
    for _ in range(4):
        world.step()
    assert world.expired == [unstarted.id, waiting.id, running.id]
    assert world.scheduler.get(started.id) is started


def test_a_paused_sequence_keeps_its_blocks_and_goes_on():
    world = World()
    sequence = world.add("a", tokens=4)
    world.step()
    world.scheduler.pause(sequence, True, world.now)
    assert not world.step().chunks
    assert sequence.blocks
    assert not world.scheduler.claims()
    world.scheduler.pause(sequence, False, world.now)
    chunk = world.step().chunks[0]
    assert (chunk.start, chunk.length) == (3, 1)
    world.run()


def test_running_out_of_blocks_preempts_the_last_and_recomputes_it():
    world = World(blocks=7, block_size=4, caching=False)
    first, last = world.add(prompt=8, tokens=12), world.add(prompt=4, tokens=12)
    world.step()
    preempted = sum(world.step().preempted for _ in range(10))
    assert preempted == 1
    assert last.computed == 0
    assert first.computed > 8
    world.run()
    assert world.finished == [first.id, last.id]


def test_a_paused_sequence_gives_its_blocks_when_others_run_out():
    world = World(blocks=5, block_size=4)
    paused = world.add(prompt=8)
    world.step()
    world.scheduler.pause(paused, True, world.now)
    other = world.add(prompt=8, tokens=8)
    while other.id not in world.finished:
        world.step()
    assert not paused.blocks
    world.scheduler.pause(paused, False, world.now)
    world.run()


def test_a_delta_without_a_turn_gets_one_within_the_bound():
    world = World(Limits(running=8, step_tokens=64, deltas=1, wait_seconds=5.0), blocks=400)
    for _ in range(3):
        world.add("a", tokens=200)
    world.step()
    starving = world.add("b", tokens=1)
    while starving.id not in world.finished:
        world.add("a", tokens=20)
        world.step()
    assert world.first[starving.id] - starving.waiting_since <= 5 + 2
    assert all(s.blocks for s in world.scheduler.waiting if s.computed), "those that gave way keep their KV"
    world.run(5000)


def test_a_delta_without_memory_makes_another_unclaimed():
    world = World()
    for _ in range(2):
        world.add("a", tokens=100)
        world.add("b", tokens=100)
    world.step()
    starving = world.add("z", tokens=1)
    world.blocked = {"z"}
    for _ in range(7):
        world.step()
    assert world.scheduler.claims() == {"b", "z"}
    world.resident, world.blocked = {"b", "z"}, set()
    world.step()
    assert starving.id in world.first
    assert world.scheduler.claims() >= {"a", "b"}


def test_nobody_gives_way_to_a_lower_priority():
    world = World(Limits(running=8, step_tokens=64, deltas=1, wait_seconds=2.0))
    world.add("a", tokens=20, priority=1)
    low = world.add("b", tokens=1)
    world.run()
    assert world.first[low.id] == 20


QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking a simulation takes minutes


@settings(max_examples=60, deadline=None, phases=QUICK)
@given(st.data())
def test_everything_finishes_whatever_happens(data):
    limits = Limits(
        running=data.draw(st.integers(1, 5)),
        step_tokens=data.draw(st.integers(5, 20)),
        deltas=data.draw(st.integers(1, 3)),
        wait_seconds=data.draw(st.sampled_from([0.0, 2.0, 8.0])),
    )
    world = World(limits, blocks=data.draw(st.integers(9, 24)), caching=data.draw(st.booleans()))
    capacity = world.scheduler.blocks.capacity
    alive: dict[int, Sequence] = {}
    for _ in range(data.draw(st.integers(1, 60))):
        match data.draw(
            st.sampled_from(["add", "add", "step", "step", "step", "abort", "pause", "go", "move", "change", "allow"])
        ):
            case "add":
                prompt, tokens = data.draw(st.integers(1, capacity // 2)), data.draw(st.integers(1, capacity // 2))
                priority = data.draw(st.integers(-1, 1))
                revision, first = data.draw(st.sampled_from(["", *"abcd"])), data.draw(st.integers(-1, 1))
                sequence = world.add(revision, prompt, tokens, first, priority=priority)
                alive[sequence.id] = sequence
            case "step":
                world.step()
            case "abort" if alive:
                sequence = alive.pop(data.draw(st.sampled_from(sorted(alive))))
                if world.scheduler.get(sequence.id):
                    world.scheduler.remove(sequence)
            case "pause" | "go" as action if alive:
                sequence = alive[data.draw(st.sampled_from(sorted(alive)))]
                if world.scheduler.get(sequence.id):
                    world.scheduler.pause(sequence, action == "pause", world.now)
            case "move":  # a delta that nobody claims leaves, others come
                world.resident = world.scheduler.claims() & world.resident | set(data.draw(st.sampled_from("abcd")))
            case "change":  # a revision that nobody needs in memory comes back with other contents
                for revision in set("abcd") - world.scheduler.claims():
                    world.versions[revision] = world.versions.get(revision, 0) + 1
            case "allow":
                world.scheduler.turns.allow(data.draw(st.integers(1, limits.deltas)))
    world.resident = set("abcd")
    for sequence in alive.values():
        if world.scheduler.get(sequence.id):
            world.scheduler.pause(sequence, False, world.now)
    world.run(20_000)
    assert world.scheduler.blocks.free == world.scheduler.blocks.count - 1


@settings(max_examples=25, deadline=None, phases=QUICK)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 30)), min_size=1, max_size=40), st.integers(1, 3))
def test_nobody_waits_longer_than_the_bound_for_a_turn(arrivals, turns):
    """Enough slots and blocks, six deltas, few turns: the wait is bounded by turns taken, not by generations."""
    wait = 4.0
    world = World(Limits(running=64, step_tokens=512, deltas=turns, wait_seconds=wait), blocks=2000)
    world.resident = set("abcdef")
    sequences = []
    for revision, tokens in arrivals:
        sequences.append((world.add(revision, 3, tokens), world.now))
        world.step()
    world.run(5000)
    bound = (wait + 1) * (1 + -(-6 // turns)) + 1
    assert max(world.first[s.id] - since for s, since in sequences) <= bound
