"""Which worker saw the beginning of a prompt before. Pure; used only for workers that report a prefix cache."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

_FIRST_TOKENS = 64  # marks are at 64, 128, 256, … tokens
_CHARACTERS = 4  # of a token, roughly: the router has no tokenizer
_MOST_MARKS = 12


def marks_of(prompt: str | Sequence[int]) -> list[tuple[bytes, int]]:
    """Returns digests of a prompt's beginnings with their (estimated) tokens, shortest first."""
    unit = _CHARACTERS if isinstance(prompt, str) else 1
    found: list[tuple[bytes, int]] = []
    tokens = _FIRST_TOKENS
    while tokens * unit <= len(prompt) and len(found) < _MOST_MARKS:
        begin = prompt[: tokens * unit]
        data = begin if isinstance(begin, str) else ",".join(map(str, begin))
        found.append((hashlib.blake2b(data.encode(), digest_size=12).digest(), tokens))
        tokens *= 2
    return found


class Prefixes:
    """The last beginnings of prompts that went to each worker, revision by revision."""

    def __init__(self, most: int = 8192) -> None:
        self._most = most
        self._workers: OrderedDict[tuple[str, bytes], str] = OrderedDict()

    def sent(self, revision: str, marks: Sequence[tuple[bytes, int]], worker: str) -> None:
        """Notes that a prompt went to a worker."""
        for digest, _ in marks:
            self._workers[revision, digest] = worker
            self._workers.move_to_end((revision, digest))
        while len(self._workers) > self._most:
            self._workers.popitem(last=False)

    def benefits(
        self, revision: str, marks: Sequence[tuple[bytes, int]], token_seconds: Mapping[str, float]
    ) -> dict[str, float]:
        """Returns the seconds that each worker saves a prompt by what it saw of it before.

        Args:
            revision: that the prompt is for: caches of different revisions share nothing.
            marks: of the prompt.
            token_seconds: what a cached token saves, of the workers that report a prefix cache.
        """
        found: dict[str, float] = {}
        for digest, tokens in marks:
            worker = self._workers.get((revision, digest), "")
            if worker in token_seconds:
                found[worker] = tokens * token_seconds[worker]
        return found
