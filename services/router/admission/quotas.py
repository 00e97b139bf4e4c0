"""Quotas of keys and models, and what they used. Pure: time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaserve.errors import QuotaError
from services.router.admission.buckets import Bucket
from services.router.admission.keys import Caller, KeyBook, Limits


@dataclass(slots=True)
class Used:
    """What a key or a model used since the router started.

    Attributes:
        requests: taken.
        refused: because of its quotas.
        tokens: of prompts and answers of requests that have ended.
        running: taken and not ended, those that wait included.
        queued: that wait in the router.
    """

    requests: int = 0
    refused: int = 0
    tokens: int = 0
    running: int = 0
    queued: int = 0


class Account:
    """The buckets and the use of one key or one model."""

    def __init__(self, kind: str, name: str, limits: Limits, now: float) -> None:
        self.used = Used()
        self.limits = Limits()
        self.who = f"{kind} {name}" if name else "callers without a key"
        self.subject = f"{kind}:{name}"
        self._buckets: dict[str, Bucket] = {}
        self.limit(limits, now)

    def limit(self, limits: Limits, now: float) -> None:
        """Sets the limits; what was used stays used."""
        self.limits = limits
        rates = {"requests": limits.requests_per_second, "tokens": limits.tokens_per_second}
        for unit, rate in rates.items():
            if rate is None:
                self._buckets.pop(unit, None)
                continue
            burst = max(1.0, rate * limits.burst_seconds)
            if unit in self._buckets:
                self._buckets[unit].changed(rate, burst, now)
            else:
                self._buckets[unit] = Bucket(rate, burst, now)

    def left(self, unit: str, now: float) -> float | None:
        """Returns how many requests or tokens may be used at once; None: there is no quota of them."""
        return self._buckets[unit].level(now) if unit in self._buckets else None

    def check(self, tokens: float, now: float) -> None:
        """Raises QuotaError if a request of so many tokens has to wait for the quota."""
        waits = {
            unit: bucket.wait(now, 1.0 if unit == "requests" else tokens) for unit, bucket in self._buckets.items()
        }
        unit = max(waits, key=waits.__getitem__, default=None)
        if unit is None or waits[unit] <= 0:
            return
        self.used.refused += 1
        asked = f", and this request is expected to take {tokens:.0f}" if unit == "tokens" else ""
        raise QuotaError(
            f"{self.who} may use {self._buckets[unit].rate:g} {unit} a second and has used them up{asked}; "
            f"try again in {_text(waits[unit])}",
            subject=f"{self.subject}/{unit}_per_second",
            retry_seconds=waits[unit],
        )

    def take(self, tokens: float, now: float) -> None:
        """Counts a request that is taken."""
        self.used.requests += 1
        self.used.running += 1
        self._take("requests", 1.0, now)
        self._take("tokens", tokens, now)

    def settle(self, estimated: float, tokens: int, now: float) -> None:
        """Counts the end of a request that was expected to take `estimated` tokens and took `tokens`."""
        self.used.running -= 1
        self.used.tokens += tokens
        self._take("tokens", tokens - estimated, now)

    def _take(self, unit: str, amount: float, now: float) -> None:
        if unit in self._buckets:
            self._buckets[unit].take(now, amount)


class Quotas:
    """The accounts of all keys and models that were ever used; only models that exist are to be named."""

    def __init__(self, book: KeyBook, now: float) -> None:
        self.book = book
        self.keys: dict[str, Account] = {}
        self.models: dict[str, Account] = {}
        self.replace(book, now)

    def replace(self, book: KeyBook, now: float) -> None:
        """Changes all limits; what was used stays used."""
        self.book = book
        parties = {caller.name: caller.party for caller in book.callers.values()}
        if book.anonymous is not None:
            parties[""] = book.anonymous.party
        for name, account in self.keys.items():
            account.limit(parties.get(name, account.limits), now)
        for name, account in self.models.items():
            account.limit(book.models.get(name, Limits()), now)

    def key(self, caller: Caller, now: float) -> Account:
        """Returns a caller's account."""
        if caller.name not in self.keys:
            self.keys[caller.name] = Account("key", caller.name, caller.party, now)
        return self.keys[caller.name]

    def model(self, model: str, now: float) -> Account:
        """Returns a model's account."""
        if model not in self.models:
            self.models[model] = Account("model", model, self.book.models.get(model, Limits()), now)
        return self.models[model]

    def check(self, caller: Caller, model: str, tokens: float, now: float) -> None:
        """Raises QuotaError if a quota of the key or of the model is used up."""
        self.key(caller, now).check(tokens, now)
        self.model(model, now).check(tokens, now)

    def take(self, caller: Caller, model: str, tokens: float, now: float) -> None:
        """Counts a request that is taken."""
        self.key(caller, now).take(tokens, now)
        self.model(model, now).take(tokens, now)

    def settle(self, caller: Caller, model: str, estimated: float, tokens: int, now: float) -> None:
        """Counts the end of a request."""
        self.key(caller, now).settle(estimated, tokens, now)
        self.model(model, now).settle(estimated, tokens, now)


def _text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{math.ceil(seconds)} s"
