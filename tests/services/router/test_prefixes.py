"""Prefix benefit: none unless reported, of the longest beginning, of the same revision only, bounded."""

from __future__ import annotations

import random
import string

import pytest

from services.router.prefixes import Prefixes, marks_of


def text(length: int) -> str:
    return "".join(random.choices(string.ascii_letters + " ", k=length))


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_the_longest_common_beginning_counts(kind: str) -> None:
    unit = 4 if kind == "text" else 1
    common = text(200 * unit) if unit == 4 else [random.randrange(9999) for _ in range(200)]
    other = text(900) if unit == 4 else [random.randrange(9999) for _ in range(300)]
    book = Prefixes()
    book.sent("m@1", marks_of(common + other), "a")
    again = marks_of(common + (text(900) if unit == 4 else [random.randrange(9999) for _ in range(300)]))
    assert book.benefits("m@1", again, {"a": 0.01, "b": 0.5}) == {"a": pytest.approx(1.28)}  # 128 of 200 tokens
    assert book.benefits("m@2", again, {"a": 0.01}) == {}
    assert book.benefits("m@1", again, {"b": 0.01}) == {}
    assert book.benefits("m@1", marks_of(other), {"a": 0.01}) == {}


def test_short_prompts_have_no_marks_and_long_ones_few() -> None:
    assert marks_of("hello") == []
    assert len(marks_of(text(3_000_000))) == 12


def test_old_beginnings_are_forgotten() -> None:
    book = Prefixes(most=3)
    prompts = [marks_of(text(300)) for _ in range(5)]
    for marks in prompts:
        book.sent("m@1", marks, "a")
    assert [bool(book.benefits("m@1", marks, {"a": 1.0})) for marks in prompts] == [False, False, True, True, True]
