"""Prompts to token ids, with the tokenizer and chat template that belong to a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from deltaserve.errors import FormatError, InvalidArgumentError, PreconditionError, UnsupportedModelError
from deltaserve.json_bounds import check_values
from services.worker.front.chat import ChatTemplate
from services.worker.front.detokenize import Detokenizer
from services.worker.front.token_bytes import TokenBytes

TOKENIZER, CONFIG, SPECIAL_TOKENS, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
FILES = (TOKENIZER, CONFIG, SPECIAL_TOKENS, TEMPLATE)


class Encoding:
    """A tokenizer.json: text to ids and back. Large in memory, so models with equal files share one.

    Attributes:
        source: the file's bytes.
        key: their sha256.
        special: ids of special tokens.
    """

    def __init__(self, data: bytes) -> None:
        """Reads the file's bytes; raises FormatError."""
        self.source = data
        self.key = hashlib.sha256(data).hexdigest()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises plain exceptions
            raise FormatError(f"{TOKENIZER} is malformed: {error}", field=TOKENIZER) from error
        self._tokenizer.no_truncation()  # a saved tokenizer may carry both from its training
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = frozenset(number for number, token in added.items() if token.special)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of tokens; raises UnsupportedModelError when the tokenizer does not tell them."""
        return TokenBytes(self._tokenizer)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Returns token ids; special tokens written in the text are recognised. Raises InvalidArgumentError."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:  # a JSON file or a template can spell half of a surrogate pair, which is no text
            raise InvalidArgumentError(f"text is not Unicode: {error}") from error
        return ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text of token ids, special tokens included; ids of no token have no text."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


class PromptTokenizer:
    """Everything about text of one model. Calls compute: keep them off the event loop."""

    def __init__(self, encoding: Encoding, files: Mapping[str, bytes]) -> None:
        """Takes the model's files by name; those of FILES count, and only the tokenizer itself is required.

        Raises:
            FormatError: a file is malformed.
        """
        self.encoding = encoding
        self._config = parse_json(files, CONFIG)
        self._special_tokens = _special_tokens(parse_json(files, SPECIAL_TOKENS) | self._config)
        self._template_source = _template_source(files, self._config)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the tokenizer's end-of-sequence token, if it names one."""
        text = self._special_tokens.get("eos_token")
        ids = self.encoding.encode(text, add_special_tokens=False) if text else []
        return ids[0] if len(ids) == 1 else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Returns the ids of a plain prompt."""
        return self.encoding.encode(text, add_special_tokens)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> list[int]:
        """Returns the ids of a conversation.

        Raises:
            PreconditionError: the model has no chat template.
            FormatError: its template is malformed.
            InvalidArgumentError: its template refuses the conversation.
        """
        if self._template is None:
            raise PreconditionError("the model has no chat template; send the prompt as text or token ids")
        return self.encoding.encode(self._template.render(messages, add_generation_prompt), add_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token; they concatenate to the whole. A character is with its last token."""
        detokenizer = Detokenizer(self.encoding.decode)
        pieces = [detokenizer.push(token) for token in ids]
        if pieces:
            pieces[-1] += detokenizer.flush()
        return pieces

    @cached_property
    def _template(self) -> ChatTemplate | None:
        source = self._template_source
        return None if source is None else ChatTemplate(source, self._special_tokens)


def parse_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Returns the JSON object in a file, {} when there is no such file; raises FormatError for anything else."""
    if name not in files:
        return {}
    try:
        check_values(files[name])
        value = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is not JSON: {error}", field=name) from error
    if not isinstance(value, dict):
        raise FormatError(f"{name} holds a JSON {type(value).__name__}; expected an object", field=name)
    return value


def require_tokenizer(files: Mapping[str, bytes], owner: str) -> bytes:
    """Returns the bytes of tokenizer.json; raises UnsupportedModelError when there are none."""
    if TOKENIZER not in files:
        raise UnsupportedModelError(
            f"{owner} has no {TOKENIZER}; convert its tokenizer with "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    return files[TOKENIZER]


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found


def _template_source(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if TEMPLATE in files:
        try:
            return files[TEMPLATE].decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{TEMPLATE} is not UTF-8: {error}", field=TEMPLATE) from error
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        by_name = {t["name"]: t["template"] for t in source if isinstance(t, dict) and {"name", "template"} <= t.keys()}
        source = by_name.get("default")
    return source if isinstance(source, str) else None
