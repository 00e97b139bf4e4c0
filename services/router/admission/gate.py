"""The gate: what a request must pass before it waits or runs. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

from deltaserve.errors import OverloadedError, QuotaError
from services.router.admission.estimates import Estimates, Size
from services.router.admission.fair import Claim
from services.router.admission.keys import Caller, KeyBook
from services.router.admission.quotas import Quotas

_LEAST_RETRY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Most requests that wait in a router: in all, of a key and of a model, where the keys file says nothing."""

    total: int
    key: int | None = None
    model: int | None = None


class Gate:
    """Admits requests by quotas, bounds of the queue and expected wait, and keeps the books until they end.

    Attributes:
        quotas: the books.
        limits: of the queue.
    """

    def __init__(self, limits: QueueLimits, book: KeyBook, now: float) -> None:
        self.quotas = Quotas(book, now)
        self.limits = limits
        self._estimates = Estimates()

    def claim(self, caller: Caller, model: str, size: Size, priority: int) -> Claim:
        """Returns what a request may ask of the queue."""
        cost = self._estimates.tokens(model, size)
        return Claim(caller.name, model, caller.party.weight, cost, caller.priority(priority))

    def check(self, caller: Caller, claim: Claim, now: float) -> None:
        """Raises QuotaError if a quota is used up."""
        self.quotas.check(caller, claim.model, claim.cost, now)

    def check_lines(self, caller: Caller, claim: Claim, expected: float | None, now: float) -> None:
        """Is asked before a request waits.

        Args:
            caller: whose it is.
            claim: of the request.
            expected: seconds that it would wait; None: nobody knows.
            now: the time.

        Raises:
            QuotaError: its key has as many waiting as it may.
            OverloadedError: its model has.
        """
        retry = max(_LEAST_RETRY, expected or 0.0)
        key, model = self.quotas.key(caller, now), self.quotas.model(claim.model, now)
        limit = self.limits.key if key.limits.max_queued is None else key.limits.max_queued
        if limit is not None and key.used.queued >= limit:
            raise QuotaError(
                f"{key.who} has {key.used.queued} requests waiting (limit {limit}); wait for some of them",
                subject=f"{key.subject}/max_queued",
                retry_seconds=retry,
            )
        limit = self.limits.model if model.limits.max_queued is None else model.limits.max_queued
        if limit is not None and model.used.queued >= limit:
            raise OverloadedError(
                f"{model.used.queued} requests wait for model {claim.model} (limit {limit}); try again later",
                retry_seconds=retry,
                waiting=model.used.queued,
            )

    def is_full(self, waiting: int) -> bool:
        """Whether no further request may wait."""
        return waiting >= self.limits.total

    def full(self, waiting: int, expected: float | None) -> OverloadedError:
        """Returns the error of a full queue."""
        return OverloadedError(
            f"{waiting} requests are waiting (limit {self.limits.total}); try again later",
            retry_seconds=max(_LEAST_RETRY, expected or 0.0),
            waiting=waiting,
        )

    def take(self, caller: Caller, claim: Claim, now: float) -> None:
        """Counts a request that is admitted."""
        self.quotas.take(caller, claim.model, claim.cost, now)

    def queued(self, caller: Caller, claim: Claim, change: int, now: float) -> None:
        """Counts requests that begin (1) or cease (-1) to wait."""
        self.quotas.key(caller, now).used.queued += change
        self.quotas.model(claim.model, now).used.queued += change

    def settle(self, caller: Caller, claim: Claim, used: int, now: float) -> None:
        """Counts the end of an admitted request that used so many tokens."""
        self.quotas.settle(caller, claim.model, claim.cost, used, now)

    def learn(self, model: str, size: Size, prompt_tokens: int, completion_tokens: int) -> None:
        """Takes what a request used, to expect it of the next."""
        self._estimates.learn(model, size, prompt_tokens, completion_tokens)

    def prompt_tokens(self, model: str, size: Size) -> float:
        """Returns what a prompt is expected to have."""
        return self._estimates.prompt_tokens(model, size)


def check_wait(expected: float | None, patience: float | None) -> None:
    """Raises OverloadedError if a request would wait for longer than its caller does.

    Args:
        expected: seconds that it would wait; None: nobody knows.
        patience: seconds that its caller waits; None: for ever.
    """
    if expected is None or patience is None or expected <= max(0.0, patience):
        return
    raise OverloadedError(
        f"the request would wait for about {expected:.1f} s, longer than the {max(0.0, patience):.1f} s that its "
        "max_queue_wait or deadline leaves; try again later, or wait longer",
        retry_seconds=max(_LEAST_RETRY, expected - patience),
        expected_wait_seconds=f"{expected:.3f}",
    )
