"""A fleet without processes: the real scheduler, residency, routing and placement, a clock of our own, and faults.

One seed is one run, always the same. Workers die, stand still, lose or delay loads and see their clock jump; clients
leave, pause, set deadlines. What must hold after every step is asserted; at the end every request has ended.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from services.router.costs import LoadCosts, Tier
from services.router.placement import decide
from services.router.plan import Demand, Held, Rules, WorkerState
from services.router.routing import WorkerView, choose
from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.plan import Limits, Plan
from services.worker.engine.prefixes import PrefixCache
from services.worker.engine.residency import Residency
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.sequence import Sequence, sequence_of
from services.worker.messages import Add, Sampling

FINGERPRINT = "0" * 64
QUIET_STEPS = 20_000  # after the last fault everything has ended by then
_COSTS = LoadCosts()


@dataclass
class Request:
    """A request as the client sees it; `told` counts tokens that it got, from whichever workers."""

    number: int
    revision: str
    tokens: int
    priority: int
    prompt: int
    deadline: float | None
    told: int = 0
    worker: str = ""
    ended: str = ""
    came: float = 0.0
    first: float | None = None


@dataclass
class SimWorker:
    """A worker: its engine's cores, and the loads under way as (steps to go, kind, revision, whether it fails)."""

    name: str
    limits: Limits
    scheduler: Scheduler
    residency: Residency
    work: list[tuple[int, str, str, bool]] = field(default_factory=list)
    stands: int = 0  # steps that it stands still
    ahead: float = 0.0  # of its clock


@dataclass
class Fleet:
    """One run.

    Attributes:
        ended: requests by how they ended.
        faults: by kind.
        loads, preempted: over all workers.
        longest_wait: seconds from a request's arrival to its first token, faults and loads included.
    """

    rng: random.Random
    sizes: dict[str, int]
    budget: int
    decoded_budget: int
    wait: float
    workers: dict[str, SimWorker] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    waiting: list[Request] = field(default_factory=list)
    now: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    loads: int = 0
    preempted: int = 0
    longest_wait: float = 0.0

    def join(self, name: str) -> None:
        """Starts a worker, or one of the same name anew after its death."""
        rng = self.rng
        limits = Limits(rng.randint(1, 8), rng.choice((4, 16, 64)), rng.randint(1, 3), self.wait)
        blocks = BlockAllocator(rng.choice((24, 60, 400)), 4)
        scheduler = Scheduler(limits, blocks, PrefixCache(blocks, lambda revision: revision))
        self.workers[name] = SimWorker(name, limits, scheduler, Residency(self.budget, self.decoded_budget))

    def submit(self, request: Request) -> None:
        """Takes a request of a client."""
        request.came = self.now
        self.requests[request.number] = request
        self.waiting.append(request)

    def step(self, faults: bool) -> None:
        """One second: faults, routing, placement, a step of every worker, and what must hold."""
        if faults:
            self._fault()
        self._route()
        if int(self.now) % 3 == 0:
            self._place()
        for worker in list(self.workers.values()):
            if worker.stands:
                worker.stands -= 1
                continue
            self._step_worker(worker)
            self._check(worker)
        self.now += 1

    def _step_worker(self, worker: SimWorker) -> None:
        now = self.now + worker.ahead
        self._load(worker, now)
        resident = worker.residency.resident()
        plan: Plan = worker.scheduler.schedule(now, resident, worker.residency.blocked())
        self.preempted += plan.preempted
        for expired in plan.expired:
            self._end(expired.id, "deadline")
        rows = sum(chunk.length for chunk in plan.chunks)
        assert rows <= worker.limits.step_tokens, f"{rows} rows in a step of {worker.limits.step_tokens}"
        assert len({chunk.sequence.revision for chunk in plan.chunks} - {""}) <= worker.limits.deltas
        for chunk in plan.chunks:
            sequence, request = chunk.sequence, self.requests[chunk.sequence.id]
            assert not sequence.revision or sequence.revision in resident, f"{sequence.revision} runs and is not there"
            worker.scheduler.advance(chunk, 1 if chunk.samples else None)
            if chunk.samples:
                request.told += 1
                if request.first is None:
                    request.first = self.now
                    self.longest_wait = max(self.longest_wait, self.now - request.came)
            if request.told == request.tokens:
                worker.scheduler.remove(sequence)
                self._end(sequence.id, "finished")

    def _load(self, worker: SimWorker, now: float) -> None:
        residency = worker.residency
        if worker.work:
            left, kind, revision, fails = worker.work.pop(0)
            if left > 0:
                worker.work.insert(0, (left - 1, kind, revision, fails))
            elif revision in residency.entries:
                self._arrived(worker, kind, revision, fails)
        claims = worker.scheduler.claims()
        in_use = {sequence.revision for sequence in worker.scheduler.running}
        moves = residency.moves(claims, now, first=worker.scheduler.turns.favoured_revision)
        assert not in_use & set(moves.evict), f"{in_use & set(moves.evict)} is in use and evicted"
        for revision in moves.load:
            self.loads += 1
            self._begin(worker, "load", revision)
        for revision in moves.decode:
            self._begin(worker, "decode", revision)
        for revision in sorted(claims - residency.entries.keys()):
            residency.expect(revision, pinned=False)
            self._begin(worker, "inspect", revision)

    def _begin(self, worker: SimWorker, kind: str, revision: str) -> None:
        fails = kind != "decode" and self.rng.random() < 0.02
        worker.work.append((self.rng.choice((0, 1, 3, 15)), kind, revision, fails))

    def _arrived(self, worker: SimWorker, kind: str, revision: str, fails: bool) -> None:
        if fails:
            self.faults["load failed"] += 1
            worker.residency.failed(revision)
            for sequence in worker.scheduler.of_revision(revision):
                worker.scheduler.remove(sequence)
                self._end(sequence.id, "load failed")
        elif kind == "inspect":
            worker.residency.want(revision, self.sizes[revision], self.sizes[revision] + 1)
        elif kind == "load":
            worker.residency.loaded(revision)
        else:
            worker.residency.decoded(revision)

    def _route(self) -> None:
        views = {name: self._view(worker) for name, worker in self.workers.items()}
        for request in list(self.waiting):
            size = self.sizes.get(request.revision, 0)
            chosen = choose(views.values(), request.revision, size, backlog=4)
            if chosen is None:
                continue
            self.waiting.remove(request)
            worker = self.workers[chosen.name]
            request.worker = chosen.name
            sampling = Sampling(max_tokens=request.tokens)
            add = Add(sequence=request.number, revision=request.revision, prompt=[1] * request.prompt,
                      resume=[1] * request.told, sampling=sampling, priority=request.priority,
                      deadline=request.deadline)  # fmt: skip
            worker.scheduler.add(sequence_of(add, request.number, self.now + worker.ahead))
            views[chosen.name] = self._view(worker)

    def _view(self, worker: SimWorker) -> WorkerView:
        residency = worker.residency
        tiers = dict.fromkeys(residency.resident(), Tier.DEVICE)
        count = len(worker.scheduler.running) + len(worker.scheduler.waiting)
        return WorkerView(worker.name, FINGERPRINT, count, worker.limits.running, 1.0, 5.0,
                          residency.budget - residency.used(), tiers)  # fmt: skip

    def _place(self) -> None:
        """What routers order: loads of models that are asked for, drops that make room."""
        asked = Counter(request.revision for request in self.requests.values() if not request.ended)
        demands = [Demand(r, size, min(1.0, asked[r] / 4), asked[r] / 10) for r, size in self.sizes.items()]
        states = [self._state(worker) for worker in self.workers.values() if not worker.stands]
        decision = decide(demands, states, Rules(), _COSTS)
        for state in states:
            self.workers[state.name].residency.rank(decision.worths(state), self.now)
        for order in decision.orders:
            worker = self.workers[order.worker]
            entry = worker.residency.entries.get(order.revision)
            if order.tier == Tier.STORE and entry is not None:
                entry.dropping = True
            elif order.tier == Tier.DEVICE and entry is None:
                worker.residency.expect(order.revision, pinned=False)
                self._begin(worker, "inspect", order.revision)

    def _state(self, worker: SimWorker) -> WorkerState:
        uses = Counter(sequence.revision for sequence in worker.scheduler.running)
        entries = worker.residency.entries.values()
        held = {e.revision: Held(Tier.DEVICE, e.size, uses[e.revision]) for e in entries if e.state == "resident"}
        arriving = {e.revision: self.sizes[e.revision] for e in entries if e.state != "resident"}
        return WorkerState(worker.name, self.budget, 0, worker.limits.running, 5.0, held, arriving)

    def _fault(self) -> None:
        kind = self.rng.choices(("", "death", "stall", "clock", "leave", "pause"), (60, 1, 2, 1, 4, 4))[0]
        if not kind:
            return
        self.faults[kind] += 1
        worker = self.rng.choice(list(self.workers.values()))
        live = list(worker.scheduler.running + worker.scheduler.waiting)
        sequence = self.rng.choice(live) if live else None
        if kind == "death":
            self.die(worker)
        elif kind == "stall":
            worker.stands = self.rng.randint(1, 30)
        elif kind == "clock":
            worker.ahead += self.rng.choice((1.0, 60.0, 3600.0))
        elif sequence is not None and kind == "leave":
            worker.scheduler.remove(sequence)
            self._end(sequence.id, "cancelled")
        elif sequence is not None:
            worker.scheduler.pause(sequence, not sequence.paused, self.now + worker.ahead)

    def die(self, worker: SimWorker) -> None:
        """Kills a worker: its requests go on elsewhere from what their clients were told; it comes back empty."""
        for sequence in worker.scheduler.running + worker.scheduler.waiting:
            request = self.requests[sequence.id]
            assert sequence.generated <= request.told, f"request {request.number} has tokens that nobody was told"
            request.worker = ""
            self.waiting.append(request)
        self.join(worker.name)

    def _end(self, number: int, how: str) -> None:
        request = self.requests[number]
        assert not request.ended, f"request {number} ended as {request.ended} and again as {how}"
        request.ended = how
        self.ended[how] += 1

    def _check(self, worker: SimWorker) -> None:
        entries, blocks = worker.residency.entries.values(), worker.scheduler.blocks
        packed = sum(entry.size for entry in entries if entry.in_memory)
        decoded = sum(entry.decoded_size for entry in entries if entry.decode)
        assert packed <= self.budget, f"{packed} bytes of packed deltas in a budget of {self.budget}"
        assert decoded <= self.decoded_budget, f"{decoded} bytes of merged deltas in a budget of {self.decoded_budget}"
        held: list[Sequence] = worker.scheduler.running + worker.scheduler.waiting
        kept: dict[int, tuple[str, list[int]]] = {}  # what a block may hold: all up to its end, of one revision
        for sequence in held:
            for place, block in enumerate(sequence.blocks, 1):
                ours = sequence.revision, sequence.tokens[: place * blocks.block_size]
                full = len(ours[1]) == place * blocks.block_size
                assert block not in kept or (full and kept[block] == ours), "two sequences share a KV block unduly"
                kept[block] = ours
        assert len(kept) + blocks.free == blocks.count - 1, "KV blocks leak"
        assert len(worker.scheduler.running) <= worker.limits.running
        lost = {s.id for s in held} ^ {
            r.number for r in self.requests.values() if r.worker == worker.name and not r.ended
        }
        assert not lost, f"requests {lost} are lost"


def run(seed: int) -> Fleet:
    """Runs one seed to its end.

    Raises:
        AssertionError: something that must hold does not.
    """
    rng = random.Random(seed)
    sizes = {revision: rng.randint(1, 4) for revision in "abcdefgh"[: rng.randint(2, 8)]}
    fleet = Fleet(rng, sizes, rng.randint(4, 12), rng.choice((0, 6, 20)), rng.choice((0.0, 2.0, 10.0)))
    for number in range(rng.randint(1, 4)):
        fleet.join(f"w{number}")
    count, asked = rng.randint(5, 40), 0
    models = ["", *sizes]
    while asked < count or rng.random() < 0.98:
        for _ in range(rng.choice((0, 0, 0, 1, 3)) if asked < count else 0):
            deadline = fleet.now + rng.choice((5, 50, 500)) if rng.random() < 0.1 else None
            fleet.submit(Request(asked, rng.choice(models), rng.randint(1, 30), rng.choice((0, 0, 0, 1, -1)),
                                 rng.randint(1, 20), deadline))  # fmt: skip
            asked += 1
        fleet.step(faults=True)
    _settle(fleet)
    left = [request for request in fleet.requests.values() if not request.ended]
    assert not left, f"seed {seed}: {len(left)} requests never end, such as {left[0]}"
    assert all(request.told == request.tokens for request in fleet.requests.values() if request.ended == "finished")
    return fleet


def _settle(fleet: Fleet) -> None:
    """No more faults: slow clients read again, and everything must end."""
    for worker in fleet.workers.values():
        for sequence in worker.scheduler.running + worker.scheduler.waiting:
            worker.scheduler.pause(sequence, False, fleet.now + worker.ahead)
    for _ in range(QUIET_STEPS):
        if all(request.ended for request in fleet.requests.values()):
            return
        fleet.step(faults=False)


def longest_pause(seed: int) -> tuple[float, float]:
    """Keeps every delta asked for without end, more of them than turns, and memory for all.

    Returns:
        The longest time that a delta went without a token, and the bound that `turns` states: wait × (1 + ⌈D / N⌉),
        with a second for each step that a change of turns takes.
    """
    rng = random.Random(seed)
    deltas, turns, wait = rng.randint(2, 8), rng.randint(1, 3), rng.choice((2.0, 5.0, 10.0))
    each = rng.randint(1, 6)  # sequences of every delta; there are places for all, so that only turns are short
    blocks = BlockAllocator(4000, 4)
    scheduler = Scheduler(
        Limits(each * deltas, 64, turns, wait), blocks, PrefixCache(blocks, lambda revision: revision)
    )
    revisions = [f"m{number}" for number in range(deltas)]
    last, longest, number = dict.fromkeys(revisions, 0.0), 0.0, 0
    for second in range(600):
        for revision in revisions:
            while len(scheduler.of_revision(revision)) < each:
                sampling = Sampling(max_tokens=rng.randint(5, 200))
                scheduler.add(sequence_of(Add(sequence=number, revision=revision, prompt=[1, 1], sampling=sampling),
                                          number, float(second)))  # fmt: skip
                number += 1
        for chunk in scheduler.schedule(float(second), set(revisions)).chunks:
            sequence = chunk.sequence
            scheduler.advance(chunk, 1 if chunk.samples else None)
            last[sequence.revision] = float(second)
            if sequence.generated == sequence.sampling.max_tokens:
                scheduler.remove(sequence)
        longest = max(longest, *(second - at for at in last.values()))
    return longest, wait * (1 + -(-deltas // turns)) + 2 * (1 + -(-deltas // turns))
