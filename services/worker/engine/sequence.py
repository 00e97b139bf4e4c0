"""One choice of one request, as the engine keeps it (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from services.worker.messages import Add, Sampling


class Constraint(Protocol):
    """What a sequence's output must look like, and how far it is."""

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""

    def mask(self) -> bytes:
        """Returns a bit for each token id, lowest bit first: whether the token may come next."""

    def advance(self, token: int) -> str:
        """Takes the next token; returns why the grammar cannot go on with it, "" when it can."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of a sequence and how far they are computed."""

    id: int
    revision: str  # "" for the base
    tokens: list[int]  # prompt, then what was generated
    prompt_length: int
    sampling: Sampling
    rank: tuple[int, int]  # (−priority, arrival): smaller goes first
    deadline: float | None = None
    prefill_deadline: float | None = None
    waiting_since: float = 0.0
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose keys and values are in `blocks`
    started: bool = False  # some step has computed it
    paused: bool = False
    identity: str = ""  # of the contents of the revision that `blocks` were computed with
    digests: list[bytes] = field(default_factory=list)  # of the full blocks of tokens, as far as anyone asked
    published: int = 0  # blocks that others can find
    charged: int = 0  # tokens that its model was charged for
    stop_tokens: frozenset[int] = frozenset()
    constraint: Constraint | None = None

    @property
    def generated(self) -> int:
        """Number of tokens after the prompt."""
        return len(self.tokens) - self.prompt_length

    @property
    def todo(self) -> int:
        """Number of tokens to compute before the next one can be sampled."""
        return len(self.tokens) - self.computed


def sequence_of(add: Add, arrival: int, now: float, constraint: Constraint | None = None) -> Sequence:
    """Makes the sequence that an Add asks for; `arrival` grows with every Add."""
    return Sequence(
        id=add.sequence,
        revision=add.revision,
        tokens=add.prompt + add.resume,
        prompt_length=len(add.prompt),
        sampling=add.sampling,
        rank=(-add.priority, arrival),
        deadline=add.deadline,
        prefill_deadline=add.prefill_deadline,
        waiting_since=now,
        stop_tokens=frozenset(add.sampling.stop_token_ids),
        constraint=constraint,
    )
