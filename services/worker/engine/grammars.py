"""Grammars of sequences: compiled beside the steps, then asked before each token (by the library llguidance).

Compiling a grammar takes about a millisecond and preparing a tokenizer up to a second, so both happen on a thread, and
a constrained sequence reaches the scheduler when its grammar is ready. The library holds the interpreter's lock while
it prepares a tokenizer, so steps wait for that all the same: once for each tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from services.worker.messages import Add, Vocabulary

_LOG = logging.getLogger(__name__)


class Matcher:
    """A grammar in one sequence; see `sequence.Constraint`."""

    def __init__(self, matcher: LLMatcher, hidden: Iterable[int] = ()) -> None:
        """Begins where `matcher` is; tokens of `hidden` never come, although the grammar may allow them."""
        self._matcher = matcher
        self._hidden = tuple(hidden)

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> bytes:
        """Returns a bit for each token id, lowest bit first: whether the token may come next."""
        mask = self._matcher.compute_bitmask()
        if not self._hidden:
            return mask
        bits = bytearray(mask)
        for token in self._hidden:
            bits[token // 8] &= ~(1 << token % 8)
        return bytes(bits)

    def advance(self, token: int) -> str:
        """Takes the next token; returns why the grammar cannot go on with it, "" when it can."""
        self._matcher.consume_token(token)
        return str(self._matcher.get_error()) if self._matcher.is_error() else ""


@dataclass(slots=True, eq=False)
class Pending:
    """A sequence whose grammar is being compiled, or could not be.

    Attributes:
        add: what the front asked for.
        arrival: its number.
        paused: whether it is to begin paused.
        constraint: the outcome.
        error: why there is none.
    """

    add: Add
    arrival: int
    paused: bool = False
    constraint: Matcher | None = None
    error: str = ""


class Grammars:
    """Vocabularies, and the sequences that wait for their grammars. Everything is called on the engine's thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Compiles on a thread of its own, which calls `wake` after each grammar."""
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._vocabularies: dict[str, Future[tuple[LLTokenizer, list[int]]]] = {}
        self._pending: dict[int, tuple[Pending, Future[Matcher]]] = {}

    def learn(self, vocabulary: Vocabulary) -> None:
        """Prepares a tokenizer, or forgets one."""
        if vocabulary.tokenizer:
            self._vocabularies[vocabulary.key] = self._thread.submit(_prepare, vocabulary)
        else:
            self._vocabularies.pop(vocabulary.key, None)

    def begin(self, add: Add, arrival: int) -> None:
        """Compiles the grammar of an Add; `ready` returns it once that is done."""
        future = self._thread.submit(_match, add, self._vocabularies.get(add.vocabulary))
        self._pending[add.sequence] = Pending(add, arrival), future
        future.add_done_callback(lambda _: self._wake())

    def abort(self, sequence: int) -> None:
        """Forgets a sequence that waits; unknown ones are ignored."""
        self._pending.pop(sequence, None)

    def pause(self, sequence: int, paused: bool) -> None:
        """Notes whether a sequence that waits is paused; unknown ones are ignored."""
        if sequence in self._pending:
            self._pending[sequence][0].paused = paused

    def ready(self) -> list[Pending]:
        """Removes and returns the sequences whose grammars are done, in order of arrival."""
        done = [number for number, (_, future) in self._pending.items() if future.done()]
        return [_outcome(*self._pending.pop(number)) for number in done]


def _prepare(vocabulary: Vocabulary) -> tuple[LLTokenizer, list[int]]:
    eos = vocabulary.eos or None
    tokenizer = LLTokenizer(vocabulary.tokenizer.decode(), n_vocab=vocabulary.size, eos_token=eos)
    return tokenizer, list(tokenizer.eos_tokens)


def _match(add: Add, prepared: Future[tuple[LLTokenizer, list[int]]] | None) -> Matcher:
    if prepared is None:
        raise ValueError(f"vocabulary {add.vocabulary!r} is not known")
    tokenizer, eos = prepared.result()
    matcher = LLMatcher(tokenizer, add.grammar, log_level=0)
    matcher.consume_tokens(add.resume)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return Matcher(matcher, set(eos) - set(add.sampling.stop_token_ids))


def _outcome(pending: Pending, future: Future[Matcher]) -> Pending:
    try:
        pending.constraint = future.result()
    except Exception as error:  # noqa: BLE001 - the library raises plain exceptions for tokenizers
        _LOG.warning("no grammar for sequence %d: %s", pending.add.sequence, error)
        pending.error = f"the grammar cannot be used: {error}"
    return pending
