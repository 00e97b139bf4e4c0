import json
from typing import Any

import pytest

from services.router.http.body import decode
from services.router.http.errors import RequestError
from services.router.http.fields import ChatOptions, CompletionOptions

GOOD = {"model": "m", "prompt": "p"}


def refused(body: dict[str, Any] | bytes, kind: Any = CompletionOptions) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    return caught.value


@pytest.mark.parametrize(
    ("extra", "param", "code", "said"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_type", ['"hot"', "float"]),
        ({"max_tokens": -3}, "max_tokens", "invalid_value", ["-3", ">= 0"]),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type", ["1.5", "int"]),
        ({"stop": [1]}, "stop[0]", "invalid_type", ["1", "str"]),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_type", ["int as a key", '{"a":1}']),
        ({"logit_bias": {"7": "x"}}, "logit_bias", "invalid_type", ['{"7":"x"}', "float"]),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type", ["[1]", "object"]),
        ({"temprature": 0}, "temprature", "unknown_parameter", ["temprature", "unrecognized"]),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter", ["stream_options.usage"]),
        ({"request_id": "a\r\nset-cookie: b"}, "request_id", "invalid_value", ["regex"]),
        ({"request_id": "a\n"}, "request_id", "invalid_value", ["regex"]),
        ({"request_id": "é"}, "request_id", "invalid_value", ["regex"]),
        ({"response_format": {}}, "response_format.type", "missing_required_parameter", ["response_format.type"]),
    ],
)
def test_messages_name_field_expected_and_found(extra: dict[str, Any], param: str, code: str, said: list[str]) -> None:
    error = refused(GOOD | extra)
    assert (error.field, error.openai_code, error.status) == (param, code, 400)
    for word in (*said, param):
        assert word in error.message, error.message


def test_required_fields_and_bad_json() -> None:
    assert refused({"prompt": "p"}).field == "model"
    assert refused({"model": "m"}, ChatOptions).field == "messages"
    assert refused({"model": "m", "messages": [{"content": "a"}]}, ChatOptions).field == "messages[0].role"
    assert refused(b"{").openai_code == "invalid_json"
    assert "the body" in refused(b"[1]").message
    for malformed in (b"[" * 100_000, b'{"model": "m", "prompt": "\xff"}', b'{"model": "m", "prompt": "\\ud800"}', b""):
        assert refused(malformed).openai_code == "invalid_json"


def test_long_values_are_cut_in_messages() -> None:
    assert len(refused(GOOD | {"temperature": "x" * 10_000}).message) < 200


def test_null_is_absent_and_whole_floats_are_integers() -> None:
    options = decode(json.dumps(GOOD | {"temperature": None, "n": None, "logit_bias": {"7": 1}}).encode(),
                     CompletionOptions)  # fmt: skip
    assert (options.temperature, options.n, options.logit_bias) == (None, None, {7: 1.0})
