"""How long a remote store is given: what is tried again after which pause, and when that ends with an error of ours.

All retries of a store are here and not in its HTTP client, because only the caller knows what a second attempt means: a
create-only put whose answer was lost may have happened (see `deltaserve.store`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError as ObjectExistsError
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.exceptions import NotFoundError as ObjectNotFoundError

from deltaserve.errors import StoreError

log = logging.getLogger(__name__)
R = TypeVar("R")

# answers, not failures: the same call gets the same one
_ANSWERS = (ObjectNotFoundError, ObjectExistsError, PreconditionError, FileNotFoundError)
_FINAL = (InvalidPathError, NotSupportedError, UnknownConfigurationKeyError)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a remote store may take.

    Attributes:
        seconds: after the first failure of a call it is tried again for so long; 0 never tries again.
        read_seconds: most time of one request that reads (8 MiB at most).
        write_seconds: most time of one request that writes (64 MiB at most).
    """

    seconds: float = 30.0
    read_seconds: float = 20.0
    write_seconds: float = 120.0


def pauses(first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> Iterator[float]:
    """Yields seconds between attempts: doubling up to `longest`, each somewhat shortened so that callers part."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
        pause = min(longest, pause * 2)


async def persevere(call: Callable[[], Awaitable[R]], what: str, patience: Patience) -> R:
    """Returns what `call` returns, calling again while the store fails in a way that may pass.

    Args:
        call: one attempt.
        what: the call in words, for messages: `get 'a/b'`.
        patience: how long.

    Raises:
        StoreError: it was refused, or kept failing; the message says how often, how long and why last.
        BaseError, FileNotFoundError: the store's answer (no such object, exists already), untouched.
    """
    started = time.monotonic()
    for attempts, pause in enumerate(pauses(), start=1):
        try:
            return await call()
        except (BaseError, OSError) as error:
            advice = _advice(error)
            if advice:
                raise StoreError(f"the store refused to {what}: {brief(error)}; {advice}") from error
            if isinstance(error, _ANSWERS):
                raise
            waited = time.monotonic() - started
            if waited + pause > patience.seconds:
                tries = f"{attempts} times in {waited:.1f} s" if attempts > 1 else "once"
                raise StoreError(f"the store failed to {what}, {tries}; at last: {brief(error)}") from error
            log.warning("the store failed to %s, trying again in %.1f s: %s", what, pause, brief(error))
        await asyncio.sleep(pause)
    raise AssertionError("pauses never end")


def brief(error: BaseException) -> str:
    """Returns the first paragraph of an error's text: obstore's go on with a dump of the error's structure."""
    return str(error).partition("\n\nDebug source")[0].strip()[:1000] or type(error).__name__


def _advice(error: BaseException) -> str:
    """Returns what a person must do before the same call can succeed; empty when waiting may help."""
    if "NoSuchBucket" in str(error):
        return "create the bucket first"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "check its credentials and rights"
    # a request that cannot even be built: a bad URL, or HTTP that nothing allows
    if isinstance(error, _FINAL) or "builder error" in str(error):
        return "check its URI and endpoint"
    return ""
