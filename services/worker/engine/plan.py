"""What a step computes, and the bounds that it keeps (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step."""

    running: int
    step_tokens: int
    deltas: int  # at most; the pace of the steps may lower it for a while
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence to compute in a step: tokens[start : start + length]."""

    sequence: Sequence
    start: int
    length: int
    samples: bool  # whether the next token is sampled after this chunk

    @property
    def tokens(self) -> list[int]:
        """The tokens themselves."""
        return self.sequence.tokens[self.start : self.start + self.length]


@dataclass(slots=True)
class Plan:
    """One step: what to compute, which sequences begin with it, and which have passed their deadline."""

    chunks: list[Chunk] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    expired: list[Sequence] = field(default_factory=list)
    preempted: int = 0
    deltas: int = 0  # distinct ones
    prompt_tokens: int = 0  # in chunks of several tokens

    def compute(self, sequence: Sequence, rows: int) -> int:
        """Adds a chunk of at most `rows` tokens; returns its length."""
        length = min(sequence.todo, rows)
        if length > 1:
            self.prompt_tokens += length
        self.chunks.append(Chunk(sequence, sequence.computed, length, length == sequence.todo))
        return length
