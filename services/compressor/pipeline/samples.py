"""The three sets of sequences of a run: calibration, held-out text, labelled evaluation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltaserve.errors import FormatError, InvalidArgumentError
from services.compressor.pipeline.rows import Chat, Labelled, Row, read_labelled, read_rows
from services.compressor.pipeline.text import Tokenizer

BUILT_IN = Path(__file__).with_name("calibration.jsonl")
MAX_HELD_OUT = 64  # sequences
MAX_EVALUATED = 2000  # rows

_SEED = 0
_HELD_OUT_EVERY = 5


Counted = Literal["answers", "turns", "whole"]
"""What figures count of a held-out sequence: answers of labelled rows, turns of the assistant, or every token."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A sequence of which is known what is asked; held out, unless it is only on its way to the calibration set.

    Attributes:
        tokens: the sequence.
        asked: for each token, whether the fine-tune is asked to say it; figures count only the places before these.
        counted: what the asked tokens are.
    """

    tokens: list[int]
    asked: list[bool]
    counted: Counted


@dataclass(frozen=True, slots=True)
class Answer:
    """One accepted answer of a labelled row.

    Attributes:
        row: number of the row.
        prompt: tokens of the prompt; the rest of the sequence is what must be said, with its end.
        tokens: prompt, answer, end.
    """

    row: int
    prompt: int
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Samples:
    """What a run computes over.

    Attributes:
        calibration: sequences that codes are fitted to.
        asked: for each of their tokens, whether the fine-tune is asked to say it; see HeldOut.
        held_out: sequences of the same source that they are not.
        answers: every accepted answer of the evaluated rows.
        rows: labelled rows that are evaluated.
        skipped: labelled rows that are not, because they are too long for the model or beyond MAX_EVALUATED.
        ends: ids that end an answer.
    """

    calibration: list[list[int]]
    asked: list[list[bool]]
    held_out: list[HeldOut]
    answers: list[Answer]
    rows: int
    skipped: int
    ends: tuple[int, ...]


def calibration_rows(path: Path | None) -> list[Row]:
    """Returns the rows of a calibration file (None: the built-in set), shuffled by a fixed seed; see read_rows."""
    rows = read_rows(path or BUILT_IN)
    random.Random(_SEED).shuffle(rows)  # noqa: S311
    return rows


def gather(
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    evaluation: Path | None,
    *,
    samples: int,
    tokens: int,
    context: int,
) -> Samples:
    """Tokenizes all sets. Every fifth sequence, at most MAX_HELD_OUT, is held out.

    Args:
        tokenizer: of the fine-tune.
        rows: see `calibration_rows`.
        evaluation: labelled JSONL or None.
        samples: most calibration sequences.
        tokens: most tokens of one calibration or held-out sequence; longer rows are cut into several.
        context: most positions of the model.

    Raises:
        FormatError: a malformed file, or fewer than two sequences to calibrate with.
        InvalidArgumentError: see Tokenizer; or evaluation with a tokenizer that has no end.
    """
    pieces = _pieces(tokenizer, rows, min(tokens, context), samples + MAX_HELD_OUT)
    if len(pieces) < 2:
        raise FormatError(
            f"calibration gives {len(pieces)} sequences of 2 tokens or more; expected at least 2",
            field="calibration",
        )
    every = max(_HELD_OUT_EVERY, -(-len(pieces) // MAX_HELD_OUT))
    fitted = _asking([piece for i, piece in enumerate(pieces) if i % every][:samples])
    labelled = read_labelled(evaluation) if evaluation else []
    answers, count = _answers(tokenizer, labelled[:MAX_EVALUATED], context)
    return Samples(
        [piece.tokens for piece in fitted],
        [piece.asked for piece in fitted],
        _asking(pieces[::every]),
        answers,
        count,
        len(labelled) - count,
        tokenizer.ends,
    )


def _pieces(tokenizer: Tokenizer, rows: Sequence[Row], limit: int, most: int) -> list[HeldOut]:
    """Cuts rows into sequences of two to `limit` tokens, at most so many."""
    pieces: list[HeldOut] = []
    for row in rows:
        tokens = tokenizer.tokens(row)
        asked = tokenizer.asked(row, tokens)
        counted = _counted(row, asked)
        for begin in range(0, len(tokens) - 1, limit):
            cut = slice(begin, begin + limit)
            pieces.append(HeldOut(tokens[cut], asked[cut], counted))
        if len(pieces) >= most:
            break
    return [piece for piece in pieces[:most] if len(piece.tokens) > 1]


def _counted(row: Row, asked: Sequence[bool]) -> Counted:
    if isinstance(row, Labelled):
        return "answers"
    return "turns" if isinstance(row, Chat) and not all(asked) else "whole"


def _asking(pieces: Sequence[HeldOut]) -> list[HeldOut]:
    """Returns the pieces; those of which nothing is asked at all count whole."""
    if any(any(piece.asked[1:]) for piece in pieces):  # no place comes before a first token
        return list(pieces)
    return [HeldOut(piece.tokens, [True] * len(piece.tokens), "whole") for piece in pieces]


def _answers(tokenizer: Tokenizer, rows: Sequence[Labelled], context: int) -> tuple[list[Answer], int]:
    if rows and not tokenizer.ends:
        raise InvalidArgumentError("evaluation needs a token that ends answers; set eos_token_id in config.json")
    answers, count = [], 0
    for row in rows:
        found = [tokenizer.labelled(row.prompt, target) for target in row.targets]
        if all(prompt and len(prompt) + len(target) <= context for prompt, target in found):
            answers += [Answer(count, len(prompt), prompt + target) for prompt, target in found]
            count += 1
    return answers, count
