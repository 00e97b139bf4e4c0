"""JSONL of calibration and evaluation: what a line may say, read strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from deltaserve.errors import FormatError
from deltaserve.json_bounds import check_values

MAX_ROWS = 100_000
MAX_LINE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, tokenized as the tokenizer does by itself (with its BOS, if it adds one)."""

    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A complete prompt, special tokens included, and every accepted answer."""

    prompt: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the chat template."""

    messages: list[dict[str, Any]]


Row = Text | Labelled | Chat


def read_rows(path: Path) -> list[Row]:
    """Reads the first MAX_ROWS rows of a JSONL file; empty lines are skipped.

    Raises:
        FormatError: a line is no JSON object, too long, or has none of `text`, `prompt` with `targets` or
            `completion`, `messages`; or there are no rows.
    """
    rows = [_row(line, f"{path.name} line {number}") for number, line in islice(_lines(path), MAX_ROWS)]
    if not rows:
        raise FormatError(f"{path.name} has no rows; expected a JSON object on each line")
    return rows


def read_labelled(path: Path) -> list[Labelled]:
    """Reads labelled rows for evaluation.

    Answers are compared without the blanks around them, so each target is accepted with a leading space too: most
    tokenizers make that space a part of the first word's token.

    Raises:
        FormatError: as `read_rows`, and for a row without prompt and targets.
    """
    labelled: list[Labelled] = []
    for number, row in enumerate(read_rows(path), 1):
        if not isinstance(row, Labelled):
            raise FormatError(f"{path.name} row {number} has no prompt and targets; evaluation needs both")
        stripped = [target.strip() for target in row.targets]
        labelled.append(Labelled(row.prompt, tuple(dict.fromkeys(v for t in stripped for v in (t, f" {t}")))))
    return labelled


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise FormatError(f"{path.name} line {number} has more than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield number, line


def _row(line: bytes, owner: str) -> Row:
    try:
        check_values(line)
        value = json.loads(line)
        if b"\\u" in line:  # escapes can spell half of a surrogate pair, which is no text to any tokenizer
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        raise FormatError(f"{owner} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{owner} is a JSON {type(value).__name__}; expected an object")
    if "prompt" in value:
        return Labelled(_text(value, "prompt", owner), _targets(value, owner))
    if "messages" in value:
        return Chat(_messages(value, owner))
    if "text" in value:
        return Text(_text(value, "text", owner))
    raise FormatError(f"{owner} has keys {sorted(value)[:8]}; expected text, prompt with targets, or messages")


def _text(value: Mapping[str, Any], key: str, owner: str) -> str:
    text = value[key]
    if not isinstance(text, str):
        raise FormatError(f"{owner}: {key} is a JSON {type(text).__name__}; expected a string")
    return text


def _targets(value: Mapping[str, Any], owner: str) -> tuple[str, ...]:
    targets = value.get("targets", [value["completion"]] if "completion" in value else None)
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise FormatError(f"{owner}: a prompt needs targets, a list of strings, or completion, a string")
    return tuple(targets)


def _messages(value: Mapping[str, Any], owner: str) -> list[dict[str, Any]]:
    messages = value["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise FormatError(f"{owner}: messages is not a list of objects; expected role and content in each")
    return messages
