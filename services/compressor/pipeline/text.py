"""Rows into tokens, with the fine-tune's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaserve.delta.adapted import FineTune
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING
from deltaserve.errors import InvalidArgumentError
from services.compressor.pipeline.rows import Chat, Labelled, Row

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_GENERATION = "generation_config.json"


class Tokenizer:
    """Makes token sequences of rows.

    Attributes:
        ends: ids that end a continuation; the first one is what a labelled row is ended with. May be empty.
        blank: what stands between prompt and answer of labelled rows that are calibrated with: "" or " ".
    """

    def __init__(self, folder: Path, vocabulary: int, ends: Sequence[int]) -> None:
        """Loads a tokenizer.

        Args:
            folder: with the tokenizer's files.
            vocabulary: rows of the embedding; more is refused.
            ends: see above; the tokenizer's own EOS when empty.

        Raises:
            InvalidArgumentError: the files cannot be read as a tokenizer.
        """
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers and tokenizers raise whatever the files make them
            raise InvalidArgumentError(f"the tokenizer in {folder.name!r} cannot be loaded: {error}") from error
        own = self._tokenizer.eos_token_id
        self._vocabulary = vocabulary
        self.blank = ""
        self.ends = tuple(ends) or (() if own is None else (int(own),))

    def tokens(self, row: Row) -> list[int]:
        """Returns a row's tokens; a labelled row's are prompt, first target, and end."""
        if isinstance(row, Labelled):
            prompt, target = self.labelled(row.prompt, self.blank + row.targets[0])
            return prompt + target
        if isinstance(row, Chat):
            return self._encode(self._rendered(row.messages), special=False)
        return self._encode(row.text, special=True)

    def asked(self, row: Row, tokens: list[int]) -> list[bool]:
        """Tells for each of the row's tokens, which `tokens` returned, whether the fine-tune is asked to say it.

        Of a labelled row that is the answer with its end, of a chat what the assistant says, of a text everything. Of a
        chat it is everything too when its template does not render a conversation as its beginning and more.
        """
        if isinstance(row, Labelled):
            prompt = self._encode(row.prompt, special=False)
            return [False] * len(prompt) + [True] * (len(tokens) - len(prompt))
        turns = self._turns(row.messages, tokens) if isinstance(row, Chat) else None
        return turns or [True] * len(tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, special tokens included; ids that the tokenizer lacks become U+FFFD."""
        known = len(self._tokenizer)
        if all(token < known for token in tokens):
            return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))
        return "".join(self.text([token]) if token < known else "\ufffd" for token in tokens)

    def labelled(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """Returns the tokens of a prompt, and those of a target after it with the end.

        The target is tokenized together with its prompt, as training does, unless that changes the prompt's tokens:
        serving tokenizes the prompt alone.
        """
        alone = self._encode(prompt, special=False)
        joint = self._encode(prompt + target, special=False)
        rest = joint[len(alone) :] if joint[: len(alone)] == alone else self._encode(target, special=False)
        return alone, [*rest, *self.ends[:1]]

    def _turns(self, messages: list[dict[str, Any]], tokens: list[int]) -> list[bool] | None:
        asked = [False] * len(tokens)
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            begin = self._beginning(messages[:i], tokens, answer=True)
            end = self._beginning(messages[: i + 1], tokens, answer=False)
            if begin is None or end is None:
                return None
            asked[begin:end] = [True] * (end - begin)
        return asked if any(asked) else None

    def _beginning(self, messages: list[dict[str, Any]], tokens: list[int], *, answer: bool) -> int | None:
        """Returns how many of a chat's tokens are those of its first messages; None if these are rendered otherwise."""
        try:
            found = self._encode(self._rendered(messages, answer=answer), special=False)
        except InvalidArgumentError:  # some templates refuse a conversation that begins with the assistant
            return None
        return len(found) if tokens[: len(found)] == found else None

    def _rendered(self, messages: list[dict[str, Any]], *, answer: bool = False) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
        except Exception as error:  # templates raise whatever they like
            raise InvalidArgumentError(f"the chat template does not take messages: {error}") from error

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        if ids and max(ids) >= self._vocabulary:
            raise InvalidArgumentError(
                f"the tokenizer makes token {max(ids)}; the embedding has {self._vocabulary} rows", field="files"
            )
        return ids


def open_tokenizer(base: Checkpoint, tuned: FineTune) -> Tokenizer:
    """Returns the fine-tune's tokenizer, or the base's when the fine-tune brings none.

    Raises:
        InvalidArgumentError: neither has one, or it cannot be read.
    """
    owner = next((checkpoint for checkpoint in (tuned, base) if has_tokenizer(checkpoint)), None)
    if owner is None:
        raise InvalidArgumentError(f"neither fine-tune nor base has a tokenizer; expected {_TOKENIZERS[0]}")
    return Tokenizer(owner.folder, tuned.tensors[EMBEDDING].shape[0], _ends(tuned))


def has_tokenizer(checkpoint: FineTune) -> bool:
    """Tells whether a checkpoint brings a tokenizer."""
    return any(name in checkpoint.side_files() for name in _TOKENIZERS)


def _ends(tuned: FineTune) -> list[int]:
    path = tuned.side_files().get(_GENERATION)
    for config in (_read(path) if path else {}, tuned.config):
        ends = config.get("eos_token_id")
        if isinstance(ends, int):
            return [ends]
        if isinstance(ends, list) and ends and all(isinstance(end, int) for end in ends):
            return ends
    return []


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path.name} is not JSON: {error}", field="files") from error
    return value if isinstance(value, dict) else {}
