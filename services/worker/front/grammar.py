"""Grammars that requests ask for, checked and turned into the form that the engine's library takes."""

from __future__ import annotations

import json

from llguidance import LLMatcher

from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb
from services.worker.front.revisions import Revision
from services.worker.messages import Vocabulary

MAX_GRAMMAR_BYTES = 256 << 10

# between tokens of JSON: as much as people and models write, but not for ever
_JSON_WHITE_SPACE = r"(\x20|\x0A\x20{0,32})?"
_JSON_OBJECT = '{"type": "object"}'


def compile_grammar(grammar: pb.Grammar) -> str:
    """Returns a grammar in llguidance's JSON form; computes for milliseconds, keep it off the event loop.

    Raises:
        InvalidArgumentError: it is malformed, too large, or uses what is not supported; the message says what.
    """
    kind = grammar.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError(
            "sampling.grammar is empty; set one of json_object, json_schema, regex, lark", field="sampling.grammar"
        )
    field = f"sampling.grammar.{kind}"
    if grammar.ByteSize() > MAX_GRAMMAR_BYTES:
        raise InvalidArgumentError(
            f"{field} has {grammar.ByteSize()} bytes; expected at most {MAX_GRAMMAR_BYTES}", field=field
        )
    try:
        compiled = _compile(grammar, kind, field)
    except (ValueError, RecursionError) as error:  # of the library: what it cannot write down, such as 2^64
        raise InvalidArgumentError(f"{field} cannot be followed: {error}", field=field) from error
    failed, messages = LLMatcher.validate_grammar_with_warnings(compiled)
    if failed:
        raise InvalidArgumentError(f"{field} cannot be followed: {'; '.join(messages)}", field=field)
    return compiled


def vocabulary_of(revision: Revision) -> Vocabulary:
    """Returns what the engine needs to apply grammars to a model; raises UnsupportedModelError if it cannot."""
    encoding = revision.tokenizer.encoding
    _ = encoding.token_bytes  # the same tokenizers are supported
    eos = sorted(token for token in revision.defaults.eos if token < revision.vocab_size)
    key = f"{encoding.key}/{revision.vocab_size}/{','.join(map(str, eos))}"
    return Vocabulary(key=key, tokenizer=encoding.source, size=revision.vocab_size, eos=eos)


def _compile(grammar: pb.Grammar, kind: str, field: str) -> str:
    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(grammar.regex))
    if kind == "lark":
        return str(LLMatcher.grammar_from_lark(grammar.lark))
    schema = grammar.json_schema if kind == "json_schema" else _JSON_OBJECT
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{field} is not JSON: {error}", field=field) from error
    if not isinstance(parsed, dict):
        raise InvalidArgumentError(
            f"{field} is a JSON {type(parsed).__name__}; expected an object, the schema", field=field
        )
    parsed.pop("x-guidance", None)  # options of the library are not the client's
    return str(LLMatcher.grammar_from_json_schema(parsed, overrides={"whitespace_pattern": _JSON_WHITE_SPACE}))
