import json

import pytest

from deltaserve.client.requests import generate_request
from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb

SCHEMA = {"type": "object", "properties": {"é": {"type": "null"}}}


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_a_schema_or_its_text_becomes_a_grammar(schema: object) -> None:
    request = generate_request("m", "p", {"json_schema": schema, "temperature": 0.0})  # type: ignore[typeddict-item]
    assert json.loads(request.sampling.grammar.json_schema) == SCHEMA
    assert request.sampling.temperature == 0


def test_other_grammars_go_as_they_are() -> None:
    grammar = pb.Grammar(regex="a+")
    request = generate_request("m", "p", {"grammar": grammar, "token_bytes": True})
    assert request.sampling.grammar == grammar
    assert request.response.token_bytes
    assert not generate_request("m", "p", {}).sampling.HasField("grammar")


def test_two_grammars_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="exclude"):
        generate_request("m", "p", {"json_schema": "{}", "grammar": pb.Grammar(regex="a")})
