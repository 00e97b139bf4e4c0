import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb
from services.worker.front.grammar import MAX_GRAMMAR_BYTES, compile_grammar
from services.worker.front.tokenizer import Encoding


def accepts(encoding: Encoding, grammar: pb.Grammar, text: str) -> bool:
    """Whether the text is a complete output."""
    tokenizer = LLTokenizer(encoding.source.decode(), eos_token=[0])
    matcher = LLMatcher(tokenizer, compile_grammar(grammar), log_level=0)
    return bool(matcher.consume_tokens(encoding.encode(text, add_special_tokens=False)) and matcher.is_accepting())


POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
    "description": "annotations do not matter",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"x":1,"y":-2}', True),
        ('{"x": 1, "y": 2}', True),
        ('{\n  "x": 1,\n  "y": 2\n}', True),
        ('{"x":1}', False),
        ('{"x":1,"y":"2"}', False),
        ('{"x":1,"y":2,"z":3}', False),
        ('{"x":1,        "y":2}', False),  # white space is bounded
        ('{\n\n\n"x":1,"y":2}', False),
    ],
)
def test_schemas_are_followed(gpt: Encoding, text: str, expected: bool) -> None:
    assert accepts(gpt, pb.Grammar(json_schema=json.dumps(POINT)), text) == expected


def test_json_objects(gpt: Encoding) -> None:
    grammar = pb.Grammar(json_object=pb.JsonObject())
    assert accepts(gpt, grammar, '{"a": [1, {"b": null}], "é": "\\n"}')
    assert not accepts(gpt, grammar, "[1]")


def test_regular_expressions_and_lark(gpt: Encoding) -> None:
    assert accepts(gpt, pb.Grammar(regex="[a-c]+!"), "abc!")
    assert not accepts(gpt, pb.Grammar(regex="[a-c]+!"), "abc!!")
    lark = pb.Grammar(lark='start: "(" start ")" | "x"')
    assert accepts(gpt, lark, "((x))")
    assert not accepts(gpt, lark, "((x)")


@pytest.mark.parametrize(
    ("grammar", "field", "said"),
    [
        (pb.Grammar(json_schema="{"), "json_schema", "not JSON"),
        (pb.Grammar(json_schema="[]"), "json_schema", "expected an object"),
        (pb.Grammar(json_schema='{"not": {"type": "string"}}'), "json_schema", '"not"'),
        (pb.Grammar(json_schema='{"type": "array", "uniqueItems": true}'), "json_schema", "uniqueItems"),
        (pb.Grammar(json_schema='{"type": "strin"}'), "json_schema", "strin"),
        (pb.Grammar(json_schema='{"$ref": "http://example.com/a"}'), "json_schema", "example.com"),
        (pb.Grammar(json_schema='{"type": "string", "pattern": "(?=a)"}'), "json_schema", "look"),
        (pb.Grammar(json_schema='{"type":"string","minLength":3,"maxLength":2}'), "json_schema", "minLength"),
        (pb.Grammar(regex="["), "regex", "class"),
        (pb.Grammar(lark="start: nothing"), "lark", "nothing"),
        (pb.Grammar(regex="a" * (MAX_GRAMMAR_BYTES + 1)), "regex", str(MAX_GRAMMAR_BYTES)),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(grammar: pb.Grammar, field: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as refused:
        compile_grammar(grammar)
    assert refused.value.field == f"sampling.grammar.{field}"


def test_an_empty_grammar_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="json_object, json_schema, regex, lark"):
        compile_grammar(pb.Grammar())


def test_options_of_the_library_are_not_the_clients(gpt: Encoding) -> None:
    schema = POINT | {"x-guidance": {"lenient": True, "whitespace_flexible": False}, "minProperties": 0}
    assert accepts(gpt, pb.Grammar(json_schema=json.dumps(schema)), '{"x": 1, "y": 2}')
    with pytest.raises(InvalidArgumentError):
        compile_grammar(pb.Grammar(json_schema=json.dumps({"x-guidance": {"lenient": True}, "not": {}})))


def test_what_the_library_cannot_write_down_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be followed"):
        compile_grammar(pb.Grammar(json_schema=json.dumps({"minimum": 1 << 64})))
