"""Every range of the proto is enforced, with the field and the numbers named."""

from typing import Any

import pytest

from deltaserve.errors import InvalidArgumentError, UnsupportedModelError
from deltaserve.v1 import inference_pb2 as pb
from services.worker.front.defaults import GenerationDefaults, generation_defaults
from services.worker.front.validation import (
    Bounds,
    check_parameters,
    check_prompt,
    check_resume,
    choice_seed,
    sampling_of,
    stopping_of,
)
from services.worker.messages import Sampling

BOUNDS = Bounds(vocab_size=100, context_length=32, max_logprobs=100)
DEFAULTS = GenerationDefaults(eos=(2,))


def request(**fields: dict[str, Any]) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        sampling=pb.SamplingParams(**fields.get("sampling", {})),
        stopping=pb.StoppingParams(**fields.get("stopping", {})),
        response=pb.ResponseOptions(**fields.get("response", {})),
    )


def resolve(asked: pb.GenerateRequest, defaults: GenerationDefaults = DEFAULTS, prompt: int = 4) -> Sampling:
    return sampling_of(asked, defaults, stopping_of(asked, defaults), prompt, BOUNDS)


BAD: list[tuple[str, dict[str, Any]]] = [
    *(("temperature", {"sampling": {"temperature": v}}) for v in (-0.1, 100.5, float("nan"), float("inf"))),
    *(("top_p", {"sampling": {"top_p": v}}) for v in (0.0, -1.0, 1.1, float("nan"))),
    *(("min_p", {"sampling": {"min_p": v}}) for v in (-0.1, 1.1)),
    *(("presence_penalty", {"sampling": {"presence_penalty": v}}) for v in (-2.1, 2.1)),
    *(("frequency_penalty", {"sampling": {"frequency_penalty": v}}) for v in (-2.1, 2.1, float("-inf"))),
    *(("repetition_penalty", {"sampling": {"repetition_penalty": v}}) for v in (0.0, -1.0, 101.0)),
    *(("sampling.n", {"sampling": {"n": v}}) for v in (0, 17)),
    ("logit_bias", {"sampling": {"logit_bias": {100: 1.0}}}),
    *(("logit_bias", {"sampling": {"logit_bias": {1: v}}}) for v in (-101.0, 101.0, float("nan"))),
    ("max_tokens", {"stopping": {"max_tokens": 0}}),
    ("min_tokens", {"stopping": {"max_tokens": 2, "min_tokens": 3}}),
    ("stopping.stop", {"stopping": {"stop": ["x"] * 17}}),
    ("stopping.stop", {"stopping": {"stop": [""]}}),
    ("stopping.stop", {"stopping": {"stop": ["x" * 2000]}}),
    ("stop_token_ids", {"stopping": {"stop_token_ids": [100]}}),
    ("top_logprobs", {"response": {"top_logprobs": 101}}),
    ("logprob_kind", {"response": {"logprob_kind": 9}}),
]


@pytest.mark.parametrize(("field", "fields"), BAD)
def test_out_of_range_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        check_parameters(request(**fields), BOUNDS)
    assert field in refused.value.field


def test_ends_of_ranges_are_allowed() -> None:
    sampling = {"temperature": 0.0, "top_p": 1.0, "min_p": 1.0, "presence_penalty": -2.0, "frequency_penalty": 2.0}
    sampling |= {"repetition_penalty": 100.0, "n": 16, "logit_bias": {99: -100.0}, "top_k": 2**32 - 1}
    check_parameters(request(sampling=sampling, stopping={"max_tokens": 1}, response={"top_logprobs": 100}), BOUNDS)


def test_prompts() -> None:
    check_prompt([0] * 31, BOUNDS, from_client=True)
    with pytest.raises(InvalidArgumentError, match="no tokens"):
        check_prompt([], BOUNDS, from_client=True)
    with pytest.raises(InvalidArgumentError, match="has 32 tokens; the context of 32") as refused:
        check_prompt([0] * 32, BOUNDS, from_client=False)
    assert refused.value.metadata == {"prompt_tokens": "32", "context_length": "32"}
    with pytest.raises(InvalidArgumentError, match="token id 100"):
        check_prompt([100], BOUNDS, from_client=True)
    with pytest.raises(UnsupportedModelError, match="token id 100"):
        check_prompt([100], BOUNDS, from_client=False)


def test_resume() -> None:
    check_resume([pb.TokenIds(ids=[1]), pb.TokenIds()], 2, BOUNDS)
    with pytest.raises(InvalidArgumentError, match="2 choices; the request has 1"):
        check_resume([pb.TokenIds(), pb.TokenIds()], 1, BOUNDS)
    with pytest.raises(InvalidArgumentError, match="token id 100"):
        check_resume([pb.TokenIds(ids=[100])], 1, BOUNDS)


def test_room_for_the_output() -> None:
    assert resolve(request()).max_tokens == 28
    assert resolve(request(stopping={"max_tokens": 28})).max_tokens == 28
    with pytest.raises(InvalidArgumentError, match=r"4 tokens and stopping.max_tokens 29 are 33 together"):
        resolve(request(stopping={"max_tokens": 29}))


def test_request_then_model_then_proto() -> None:
    defaults = GenerationDefaults({"temperature": 0.5, "top_k": 7}, eos=(2, 3))
    resolved = resolve(request(sampling={"top_k": 0, "min_p": 0.25}), defaults)
    assert (resolved.temperature, resolved.top_k, resolved.min_p, resolved.top_p) == (0.5, 0, 0.25, 1.0)
    assert resolved.stop_token_ids == [2, 3]
    assert resolve(request(stopping={"stop_token_ids": [9], "ignore_eos": True}), defaults).stop_token_ids == [9]
    assert resolved.top_logprobs is None
    assert resolve(request(response={"top_logprobs": 0, "logprob_kind": 2})).top_logprobs == 0
    assert resolve(request(response={"logprob_kind": 2})).raw_logits


def test_seeds_wrap() -> None:
    assert [choice_seed(2**64 - 1, i) for i in range(3)] == [2**64 - 1, 0, 1]


def test_generation_config() -> None:
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "eos_token_id": [5, 6], "max_length": 9}
    found = generation_defaults(config, {"eos_token_id": 1}, 0, "m")
    assert found == GenerationDefaults({"temperature": 0.6, "top_p": 0.9, "top_k": 50}, (5, 6))
    assert generation_defaults({}, {"eos_token_id": 1}, 0, "m").eos == (1,)
    assert generation_defaults({}, {"eos_token_id": None}, 0, "m").eos == (0,)
    assert generation_defaults({}, {}, None, "m") == GenerationDefaults()
    assert generation_defaults({"do_sample": False, "temperature": 0.6}, {}, None, "m").sampling["temperature"] == 0


@pytest.mark.parametrize("value", [-1, float("nan"), "hot", True, [1], 1e9, 10**400, -(10**400)])
def test_bad_defaults_are_left_out(value: object, caplog: pytest.LogCaptureFixture) -> None:
    assert generation_defaults({"temperature": value}, {}, None, "m@1") == GenerationDefaults()
    assert "m@1: generation_config.json has temperature" in caplog.text
