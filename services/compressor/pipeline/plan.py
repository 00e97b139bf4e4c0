"""What is tried, attempt after attempt, until a fine-tune meets what was asked of it. Pure.

A fixed codec or a budget is tried first as asked. When the report misses its policy, the next attempt spends more bytes
where they take most predicted KL away, as many as the miss calls for. The search for the smallest size that
meets a policy also goes down again while there is room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from services.compressor.pipeline.allocation import Allocation, Table, cost, stored, under_budget, under_cost
from services.compressor.pipeline.choices import EXACT, Choice
from services.compressor.pipeline.spec import Policy

MAX_ATTEMPTS = 5

_MARGIN = 1.25  # predicted KL is aimed this far below what is allowed: predictions of other bytes are not exact
_GROWTH = 1.03  # an attempt after a miss stores at least this much more
_ROOM = 0.6  # of what is allowed: below it a smaller size is tried


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a plan.

    Attributes:
        choices: by tensor name.
        predicted_kl: nats a token; None when nothing predicted it.
        bits: stored bits a parameter, everything counted.
        kl, agreement, accuracy_drop: as the report has them; the drop in points, None without evaluation.
        failures: a sentence for each limit missed.
    """

    choices: dict[str, Choice]
    predicted_kl: float | None
    bits: float
    kl: float
    agreement: float
    accuracy_drop: float | None
    failures: list[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to code every tensor that is coded, and the KL that is predicted for it."""

    choices: Mapping[str, Choice]
    predicted_kl: float | None


@dataclass(frozen=True, slots=True)
class Planner:
    """Decides what to try next.

    Attributes:
        policy: what must be met.
        parameters: of the fine-tune.
        fixed_bytes: stored whatever is chosen: norms, biases, side files, headers.
        first: the plan of a fixed codec; None: the first attempt follows from `bits` or `smallest`.
        bits: budget in stored bits a parameter.
        smallest: look for the smallest size that meets the policy.
    """

    policy: Policy
    parameters: int
    fixed_bytes: int
    first: Mapping[str, Choice] | None = None
    bits: float | None = None
    smallest: bool = False

    def next(self, table: Table | None, attempts: Sequence[Attempt]) -> Plan | None:
        """Returns the next plan; None when there is nothing better to try.

        Args:
            table: of the profile; needed unless this is the first attempt of a fixed codec.
            attempts: what was tried, in order.
        """
        if not attempts and self.first is not None:
            return Plan(self.first, None)
        if table is None:
            raise ValueError("only the first attempt of a fixed codec can be planned without a profile")
        if not attempts:
            return _plan(self._first(table))
        if len(attempts) >= MAX_ATTEMPTS or not (attempts[-1].failures or self.smallest):
            return None
        following = self._following(table, attempts)
        if following is None or any(_same(following, attempt.choices) for attempt in attempts):
            return None
        return _plan(following)

    def best(self, attempts: Sequence[Attempt]) -> Attempt | None:
        """Returns the smallest attempt that meets the policy; None when none does."""
        return min((a for a in attempts if not a.failures), key=lambda attempt: attempt.bits, default=None)

    def _first(self, table: Table) -> Allocation:
        if self.smallest and self.policy.max_kl is not None:
            return self._capped(table, under_cost(table, self.policy.max_kl / _MARGIN))
        if self.bits is None:
            raise ValueError("a plan needs a codec, a budget, or a policy to be met by the smallest size")
        return self._capped(table, under_budget(table, self._bytes(self.bits)))

    def _following(self, table: Table, attempts: Sequence[Attempt]) -> Allocation | None:
        last = attempts[-1]
        chosen = _chosen(table, last.choices)
        predicted, needed = cost(chosen), self._tightness(last)
        if last.failures:
            least = int(_GROWTH * stored(chosen))
            aimed = under_cost(table, predicted / (max(needed, 1.0) * _MARGIN))
            return self._capped(table, aimed if stored(aimed) >= least else under_budget(table, least))
        if needed > _ROOM or any(a.failures and a.bits <= last.bits for a in attempts[-2:]):
            return None
        return self._capped(table, under_cost(table, predicted / max(needed * _MARGIN, 1e-3)))

    def _tightness(self, attempt: Attempt) -> float:
        """Returns how far an attempt uses up the policy's limits on quality, in terms of KL; above 1 misses them."""
        used = [0.0]
        if self.policy.max_kl is not None:
            used.append(attempt.kl / max(self.policy.max_kl, 1e-12))
        if self.policy.min_agreement is not None:
            # disagreement grows with the root of the KL
            used.append(((1 - attempt.agreement) / max(1 - self.policy.min_agreement, 1e-12)) ** 2)
        if self.policy.max_accuracy_drop is not None and attempt.accuracy_drop is not None:
            drop, limit = max(attempt.accuracy_drop, 0.0), self.policy.max_accuracy_drop
            used.append(2.0 if drop > limit else 0.5)  # rows are few: a drop says which way, not how far
        return min(max(used), 100.0)

    def _bytes(self, bits: float) -> int:
        return max(0, int(bits * self.parameters / 8) - self.fixed_bytes)

    def _capped(self, table: Table, allocation: Allocation) -> Allocation:
        limit = self.policy.max_bits_per_param
        if limit is None or stored(allocation) <= self._bytes(limit):
            return allocation
        return under_budget(table, self._bytes(limit))


def _plan(allocation: Allocation) -> Plan:
    return Plan({name: candidate.choice for name, candidate in allocation.items()}, cost(allocation))


def _same(allocation: Allocation, choices: Mapping[str, Choice]) -> bool:
    return all(candidate.choice == _standing(choices[name]) for name, candidate in allocation.items())


def _chosen(table: Table, choices: Mapping[str, Choice]) -> Allocation:
    """Returns the candidates that choices stand for."""
    wanted = {name: _standing(choice) for name, choice in choices.items()}
    return {name: next(c for c in table[name] if c.choice == choice) for name, choice in wanted.items()}


def _standing(choice: Choice) -> Choice:
    """Returns the choice that tables have; `dense` stands for the smallest exact code."""
    return Choice(EXACT) if choice.codec == "dense" else choice
