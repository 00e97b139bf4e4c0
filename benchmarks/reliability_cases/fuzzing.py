"""Mutates honest inputs and feeds them to a parser: bytes, whole JSON values, words, lengths, splices."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.reliability_cases.parsers import Parser, outcome

_MOST = 1 << 16  # bytes of a mutated input

# what breaks parsers of JSON, numbers, text
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 32, 1 << 63, -(1 << 63), 1 << 64, 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "a", "\0", "../x", "\ud800", "ü" * 99, "x" * 999, [], {}, [[]], [{}], {"": {}},
    [0] * 99, {"a": [1, {"b": None}]},
)  # fmt: skip
_BYTES = (b"\0", b"\xff" * 8, b"\x7f\xff\xff\xff", b"9" * 50, b"[" * 200, b"{", b"}", b'"', b"\\u0000", b"\xed\xa0\x80",
          b"NaN", b"-", b"e999", b",", b"\n", b"\xf0\x9f\x98\x80")  # fmt: skip


@dataclass(slots=True)
class Fuzzed:
    """What came of it: inputs by outcome, and the dearest input's CPU seconds."""

    parser: str
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_input: bytes = b""

    @property
    def inputs(self) -> int:
        """Inputs that were fed."""
        return self.outcomes.total()


class FuzzError(AssertionError):
    """A parser raised what it must not, or took too long."""


def fuzz(parser: Parser, rng: random.Random, inputs: int, seconds: float = 1e9, limit: float = 1.0) -> Fuzzed:
    """Feeds mutated inputs until there were `inputs`, or `seconds` of CPU time are over.

    Raises:
        FuzzError: with the input: another exception than a refusal, or more than `limit` seconds of CPU time.
    """
    found = Fuzzed(parser.name)
    end = time.process_time() + seconds
    for data in mutated(parser, rng):
        began = time.process_time()
        if found.inputs >= inputs or began > end:
            return found
        try:
            told = outcome(parser, data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise FuzzError(f"{parser.name}: {error!r} for the input {data[:2000]!r}") from error
        took = time.process_time() - began
        found.outcomes[told] += 1
        if took > found.slowest:
            found.slowest, found.slowest_input = took, data
        if took > limit:
            raise FuzzError(f"{parser.name}: {took:.2f} CPU seconds for the input {data[:2000]!r}")
    raise AssertionError("mutations never end")


def mutated(parser: Parser, rng: random.Random) -> Iterator[bytes]:
    """Yields inputs for ever: the honest ones first."""
    yield from parser.seeds
    parsed = [_json(seed) for seed in parser.seeds]
    while True:
        number = rng.randrange(len(parser.seeds))
        data = parser.seeds[number]
        if parsed[number] is not None and rng.random() < 0.5:
            data = _dump(_changed(parsed[number], rng, rng.choice((1, 1, 1, 2, 4))))
        for _ in range(rng.choice((0, 1, 1, 2, 5)) if data != parser.seeds[number] else rng.choice((1, 1, 2, 8))):
            data = _damaged(data, rng, parser)
        yield data[:_MOST] if len(parser.seeds[number]) < _MOST else data


def _damaged(data: bytes, rng: random.Random, parser: Parser) -> bytes:
    at = rng.randrange(len(data) + 1)
    span = rng.choice((1, 1, 2, 4, 8, 64))
    match rng.randrange(8):
        case 0 if data:
            at = rng.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.randbytes(span) + data[at + span :]
        case 2:
            return data[:at] + data[at + span :]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[rng.randrange(len(data) + 1) :][: 1 << rng.randrange(10)] + data[at:]
        case 5:
            return data[:at] + rng.choice(_BYTES) + data[at + rng.choice((0, span)) :]
        case 6:
            return data[:at] + rng.choice(parser.words or _BYTES) + data[at + rng.choice((0, span)) :]
        case _:
            other = rng.choice(parser.seeds)
            return data[:at] + other[rng.randrange(len(other) + 1) :]


def _json(seed: bytes) -> Any:
    try:
        return json.loads(seed)
    except ValueError:
        return None


def _dump(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=True)
    return text.encode()


def _changed(value: Any, rng: random.Random, times: int) -> Any:
    for _ in range(times):
        value = _change(value, rng)
    return value


def _change(value: Any, rng: random.Random) -> Any:
    """Returns the value with one value in it replaced, renamed, repeated or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.randrange(10)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return value | {rng.choice(("", "x", key + "x", "__class__")): value[key]}
        return value | {key: _change(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        kind = rng.randrange(10)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, value[at]]
        return [*value[:at], _change(value[at], rng), *value[at + 1 :]]
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "\0", "é", value, chr(rng.randrange(1, 0xD800)))) + value[at + 1 :]
    return rng.choice(_VALUES)
