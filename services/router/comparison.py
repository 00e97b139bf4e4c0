"""Two outputs for one request, compared token by token as they come, and the sums over many. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Comparison:
    """The outputs of a primary and its shadow, in any interleaving; nothing after the first difference counts.

    Attributes:
        agreed: tokens that are the same, from the first on.
        diverged: whether they differ after those.
    """

    agreed: int = 0
    diverged: bool = False
    _ahead: array[int] = field(default_factory=lambda: array("I"))  # tokens that only one of the two has made yet
    _leader: int = 0  # whose they are
    _ended: list[bool] = field(default_factory=lambda: [False, False])

    @property
    def settled(self) -> bool:
        """Whether nothing that may still come changes the result."""
        return self.diverged or all(self._ended)

    @property
    def primary_over(self) -> bool:
        """Whether the primary has ended by itself."""
        return self._ended[0]

    def primary(self, tokens: Iterable[int]) -> None:
        """Takes new tokens of the primary."""
        self._take(0, tokens)

    def shadow(self, tokens: Iterable[int]) -> None:
        """Takes new tokens of the shadow."""
        self._take(1, tokens)

    def primary_ended(self) -> None:
        """The primary makes no more tokens."""
        self._end(0)

    def shadow_ended(self) -> None:
        """The shadow makes no more tokens."""
        self._end(1)

    def _take(self, who: int, tokens: Iterable[int]) -> None:
        for token in tokens:
            if self.diverged:
                return
            if not self._ahead or self._leader == who:
                self._leader = who
                self._ahead.append(token)
                self.diverged = self._ended[1 - who]
            elif self._ahead.pop(0) == token:
                self.agreed += 1
            else:
                self.diverged = True

    def _end(self, who: int) -> None:
        self._ended[who] = True
        if self._ahead and self._leader != who:
            self.diverged = True  # the other one went on


@dataclass(slots=True)
class PairCounts:
    """What was counted of one revision and one that shadows it; requests, but for the tokens."""

    sampled: int = 0
    skipped: int = 0  # there was no place to spare
    dropped: int = 0  # given up for clients' requests, or because the client left
    failed: int = 0
    compared: int = 0
    identical: int = 0
    tokens_agreed: int = 0
    tokens_before_difference: int = 0  # of these, in outputs that differ

    @property
    def mean_divergence(self) -> float:
        """Mean number of tokens before the first difference, over outputs that differ; 0 when none do."""
        return self.tokens_before_difference / self.diverged if self.diverged else 0.0

    @property
    def diverged(self) -> int:
        """Requests whose outputs differ."""
        return self.compared - self.identical

    @property
    def agreement(self) -> float:
        """Share of tokens on which both agree, given the same tokens before; 0 when nothing was compared.

        Each request is compared up to its first difference only: after it the two continue different texts.
        """
        judged = self.tokens_agreed + self.diverged
        return self.tokens_agreed / judged if judged else 0.0

    def count(self, comparison: Comparison) -> None:
        """Counts a comparison that is settled."""
        self.compared += 1
        self.identical += not comparison.diverged
        self.tokens_agreed += comparison.agreed
        if comparison.diverged:
            self.tokens_before_difference += comparison.agreed
