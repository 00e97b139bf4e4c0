"""The engine: takes messages between steps, and makes steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from services.worker.engine import sampler
from services.worker.engine.attention import Attention
from services.worker.engine.batch import Batch, build_batch
from services.worker.engine.delta_cache import DeltaCache
from services.worker.engine.grammars import Grammars
from services.worker.engine.model import LlamaModel, vocab_of
from services.worker.engine.outputs import ended, output_of
from services.worker.engine.pace import Pace
from services.worker.engine.plan import Plan
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.sequence import Constraint, sequence_of
from services.worker.engine.stats import StatsReporter
from services.worker.messages import (
    Abort,
    Add,
    Drop,
    FromEngine,
    Load,
    Output,
    Pause,
    Rank,
    Sampling,
    Step,
    ToEngine,
    Vocabulary,
)

_NOTHING_ALLOWED = ", or neither the grammar nor what holds stop tokens back leaves a token"


class Engine:
    """All sequences and deltas of one base. Everything but the loader happens on one thread.

    Attributes:
        context: most tokens a sequence may have, prompt and output together.
        deltas: what is in memory.
    """

    def __init__(
        self,
        model: LlamaModel,
        attention: Attention,
        scheduler: Scheduler,
        deltas: DeltaCache,
        send: Callable[[FromEngine], None],
        grammars: Grammars,
        pace: Pace,
    ) -> None:
        self.context = min(model.config.context, scheduler.blocks.capacity)
        self._model = model
        self._attention = attention
        self._scheduler = scheduler
        self.deltas = deltas
        self._send = send
        self._grammars = grammars
        self._pace = pace
        self._device = model.weights.embedding.device
        self._arrivals = 0
        self._outputs: list[Output] = []
        self._stats = StatsReporter(scheduler, pace, deltas, lambda message: self._send(message))  # noqa: PLW0108 - warm_up swaps it

    @property
    def idle(self) -> bool:
        """Whether nothing can happen before the next message or event of the loader."""
        return self._scheduler.idle

    @property
    def prefix_hits(self) -> int:
        """Prompt tokens that were found in the prefix cache since the start."""
        return self._scheduler.prefixes.hits

    def handle(self, message: ToEngine, now: float) -> None:
        """Takes one message; it has effect on the next step."""
        match message:
            case Add(grammar=grammar):
                self._arrivals += 1
                if grammar:
                    self._grammars.begin(message, self._arrivals)
                else:
                    self._add(message, self._arrivals, now)
            case Vocabulary():
                self._grammars.learn(message)
            case Abort(sequence_id):
                self._grammars.abort(sequence_id)
                if sequence := self._scheduler.get(sequence_id):
                    self._scheduler.remove(sequence)
            case Pause(sequence_id, paused):
                self._grammars.pause(sequence_id, paused)
                if sequence := self._scheduler.get(sequence_id):
                    self._scheduler.pause(sequence, paused, now)
            case Load() | Drop() | Rank():
                self.deltas.handle(message, now)

    @torch.inference_mode()
    def step(self, now: float) -> bool:
        """Makes one step; returns False when there was nothing to compute. `now` is the clock of deadlines, seconds."""
        plan = self._schedule(now)
        self._stats.planned(plan)
        if plan.chunks:
            batch = self._prepare(plan)
            logits = self._forward(batch)
            choices = self._sample(logits, batch)
            self._collect(plan, batch, choices)
        self._publish(now)
        computed = bool(plan.chunks)
        self._pace.step(now, plan.deltas, plan.prompt_tokens, computed=computed)
        self._stats.step(now)
        return computed

    def warm_up(self) -> None:
        """Runs one sequence of the base through, so that the first request finds everything initialised."""
        outputs: list[FromEngine] = []
        send, self._send = self._send, outputs.append
        self.handle(Add(sequence=-1, revision="", prompt=[0, 0], sampling=Sampling(max_tokens=2)), 0.0)
        while not self.idle:
            self.step(0.0)
        self.step(0.0)  # with nothing to do, so that the last one is not taken to last until the first request
        self._send = send

    def _schedule(self, now: float) -> Plan:
        self._take_constrained(now)
        self._scheduler.turns.allow(self._pace.deltas)
        first = self._scheduler.turns.favoured_revision
        for revision, reason in self.deltas.update(self._scheduler.claims(), now, first):
            for sequence in self._scheduler.of_revision(revision):
                self._fail(sequence.id, reason)
        plan = self._scheduler.schedule(now, self.deltas.weights.keys(), self.deltas.residency.blocked())
        self._outputs += [Output(sequence=s.id, finish="deadline") for s in plan.expired]
        for sequence in plan.started:
            self._check_tokens(plan, sequence.id, sequence.tokens, sequence.revision)
        return plan

    def _prepare(self, plan: Plan) -> Batch:
        return build_batch(plan.chunks, self.deltas.weights, self._scheduler.blocks.block_size, self._device)

    def _forward(self, batch: Batch) -> torch.Tensor:
        return self._model.forward(batch, self._attention)

    def _sample(self, logits: torch.Tensor, batch: Batch) -> list[sampler.Choice]:
        return sampler.sample(logits, [chunk.sequence for chunk in batch.sampling_chunks])

    def _collect(self, plan: Plan, batch: Batch, choices: Sequence[sampler.Choice]) -> None:
        """Moves sequences on and notes what came out."""
        news = set(plan.started)
        chosen = iter(choices)
        for chunk in batch.chunks:
            sequence = chunk.sequence
            began = sequence in news
            if not chunk.samples:
                self._scheduler.advance(chunk, None)
                if began:
                    self._outputs.append(Output(sequence=sequence.id, prefill_started=True))
                continue
            choice = next(chosen)
            if choice.token is None:
                free = sequence.constraint is None
                self._fail(sequence.id, "the model's logits are not finite" + ("" if free else _NOTHING_ALLOWED))
                continue
            self._scheduler.advance(chunk, choice.token)
            if sequence.constraint is not None and (broken := sequence.constraint.advance(choice.token)):
                self._fail(sequence.id, f"the grammar cannot be followed further: {broken}")
                continue
            output = output_of(sequence, choice, self.context, prefill_started=began)
            self._outputs.append(output)
            if output.finish:
                self._scheduler.remove(sequence)

    def _publish(self, began: float) -> None:
        if self._outputs:
            self._send(Step(self._outputs, began))
            self._outputs = []

    def _take_constrained(self, now: float) -> None:
        """Takes the sequences whose grammars have become ready."""
        for pending in self._grammars.ready():
            if pending.error:
                self._outputs.append(Output(sequence=pending.add.sequence, finish="error", error=pending.error))
                continue
            self._add(pending.add, pending.arrival, now, pending.constraint)
            sequence = self._scheduler.get(pending.add.sequence)
            if pending.paused and sequence is not None:
                self._scheduler.pause(sequence, True, now)

    def _add(self, add: Add, arrival: int, now: float, constraint: Constraint | None = None) -> None:
        sequence = sequence_of(add, arrival, now, constraint)
        if not sequence.tokens or self._scheduler.get(add.sequence) is not None:
            self._outputs.append(
                Output(sequence=add.sequence, finish="error", error="empty prompt, or a sequence number in use")
            )
        elif finish := ended(sequence, self.context):
            last = sequence.tokens[-1]
            stop_token = last if finish == "stop" and last in sequence.stop_tokens else None
            self._outputs.append(Output(sequence=add.sequence, finish=finish, stop_token=stop_token))
        else:
            self._scheduler.add(sequence)

    def _check_tokens(self, plan: Plan, sequence_id: int, tokens: list[int], revision: str) -> None:
        """Fails a sequence whose tokens the model has no embedding for: one bad request must not end the engine."""
        vocab = vocab_of(self._model, self.deltas.weights.get(revision))
        if min(tokens) >= 0 and max(tokens) < vocab:
            return
        plan.chunks = [chunk for chunk in plan.chunks if chunk.sequence.id != sequence_id]
        self._fail(sequence_id, f"token ids run from {min(tokens)} to {max(tokens)}; the model has 0 to {vocab - 1}")

    def _fail(self, sequence_id: int, reason: str) -> None:
        if sequence := self._scheduler.get(sequence_id):
            self._scheduler.remove(sequence)
            self._outputs.append(Output(sequence=sequence_id, finish="error", error=reason))
