"""Requests built from plain Python values: prompts, sampling and stopping options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeGuard

from google.protobuf import duration_pb2

from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb

# text, token ids, or a conversation of {"role": ..., "content": ...}
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


class GenerateOptions(TypedDict, total=False):
    """Options of `generate`, each optional and named as in inference.proto, which says what they mean.

    An option that is absent or None takes the model's default.
    """

    timeout: float | None  # seconds until the whole request is given up; absent: never
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    n: int | None
    grammar: pb.Grammar | None
    json_schema: Mapping[str, Any] | str | None  # a schema, or its text: sets grammar
    max_tokens: int | None
    min_tokens: int | None
    stop: Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    include_stop: bool | None
    top_logprobs: int | None
    token_bytes: bool | None
    logits: bool | None  # Logprob values are raw logits instead of log-probabilities
    max_flush_ms: int | None
    skip_special_tokens: bool | None
    priority: int | None
    request_id: str | None
    sticky_key: str | None  # requests of one key keep to one route of an alias
    max_queue_wait: float | None  # seconds
    add_special_tokens: bool | None


_SAMPLING = frozenset(field.name for field in pb.SamplingParams.DESCRIPTOR.fields)
_STOPPING = frozenset(field.name for field in pb.StoppingParams.DESCRIPTOR.fields)


def generate_request(model: str, prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """Returns the request for `prompt`; raises InvalidArgumentError when a value does not fit its field."""
    unknown = set(options) - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"generate() got unexpected options {sorted(unknown)}")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    wait = given.get("max_queue_wait")
    if "json_schema" in given:
        given["grammar"] = _schema_grammar(given)
    try:
        return pb.GenerateRequest(
            model=model,
            sampling=pb.SamplingParams(**{k: v for k, v in given.items() if k in _SAMPLING}),
            stopping=pb.StoppingParams(**{k: v for k, v in given.items() if k in _STOPPING}),
            response=pb.ResponseOptions(
                top_logprobs=given.get("top_logprobs"),
                logprob_kind=pb.LOGPROB_KIND_LOGIT if given.get("logits") else pb.LOGPROB_KIND_UNSPECIFIED,
                max_flush_ms=given.get("max_flush_ms"),
                skip_special_tokens=given.get("skip_special_tokens"),
                token_bytes=given.get("token_bytes"),
            ),
            priority=given.get("priority"),
            client_request_id=given.get("request_id", ""),
            sticky_key=given.get("sticky_key", ""),
            max_queue_wait=None if wait is None else duration(wait),
            add_special_tokens=given.get("add_special_tokens"),
            **_prompt_fields(prompt, pb.TokenIds),
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"a generation option does not fit its field: {error}") from error


def tokenize_request(
    model: str, prompt: str | Sequence[Mapping[str, str]], add_special_tokens: bool | None
) -> pb.TokenizeRequest:
    """Returns the request that tokenizes text or a conversation."""
    if not isinstance(prompt, str) and _is_token_ids(prompt):
        raise InvalidArgumentError("prompt is token ids already; expected text or messages", field="prompt")
    return pb.TokenizeRequest(model=model, add_special_tokens=add_special_tokens, **_prompt_fields(prompt, None))


def duration(seconds: float) -> duration_pb2.Duration:
    """Returns seconds as a protobuf Duration."""
    value = duration_pb2.Duration()
    value.FromNanoseconds(int(seconds * 1e9))
    return value


def _schema_grammar(given: Mapping[str, Any]) -> pb.Grammar:
    if "grammar" in given:
        raise InvalidArgumentError("json_schema and grammar exclude each other; give one of them", field="json_schema")
    schema = given["json_schema"]
    return pb.Grammar(json_schema=schema if isinstance(schema, str) else json.dumps(schema))


def _prompt_fields(prompt: Prompt, ids: type[pb.TokenIds] | None) -> dict[str, Any]:
    """Returns the one member of the request's `prompt` oneof."""
    if isinstance(prompt, str):
        return {"text": prompt}
    if ids is not None and _is_token_ids(prompt):
        return {"token_ids": ids(ids=prompt)}
    messages = [_message(turn) for turn in prompt]
    return {"chat": pb.ChatPrompt(messages=messages)}


def _is_token_ids(prompt: Sequence[object]) -> TypeGuard[Sequence[int]]:
    return bool(prompt) and all(isinstance(item, int) for item in prompt)


def _message(turn: object) -> pb.ChatMessage:
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise InvalidArgumentError(
            f"a message of the prompt is {turn!r}; expected {{'role': ..., 'content': ...}}", field="prompt"
        )
    return pb.ChatMessage(role=turn["role"], content=turn["content"])
