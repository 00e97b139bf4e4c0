"""From bodies of requests to GenerateRequests; raises RequestError for what has no equivalent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltaserve.v1 import inference_pb2 as pb
from services.router.http.errors import RequestError
from services.router.http.fields import ChatOptions, CompletionOptions, Message, Options, ResponseFormat

MOST_PROMPTS = 128  # of one request
_COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions
_SEEDS = 2**64
_SAMPLING = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "n",
)  # fmt: skip

Prompt = str | list[int]


def completion_requests(options: CompletionOptions) -> list[pb.GenerateRequest]:
    """Returns one request a prompt."""
    if options.suffix:
        raise _unsupported("suffix", options.suffix, "null: completions go on at the end only")
    if options.best_of not in {None, options.n or 1}:
        raise _unsupported("best_of", options.best_of, f"null or n, which is {options.n or 1}")
    if options.echo and options.logprobs is not None:
        raise _unsupported("echo", True, "false together with logprobs: those of a prompt are not computed")
    prompts = prompts_of(options.prompt)
    limit = _COMPLETION_TOKENS if options.max_tokens is None else options.max_tokens
    requests = []
    for prompt in prompts:
        request = _request(options, limit, options.logprobs)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        if options.add_special_tokens is not None:
            request.add_special_tokens = options.add_special_tokens
        requests.append(request)
    return requests


def chat_request(options: ChatOptions) -> pb.GenerateRequest:
    """Returns the request of a conversation."""
    _check_chat(options)
    limit = options.max_tokens if options.max_completion_tokens is None else options.max_completion_tokens
    request = _request(options, limit, (options.top_logprobs or 0) if options.logprobs else None)
    request.chat.messages.extend(_message(message, f"messages[{i}]") for i, message in enumerate(options.messages))
    if options.add_generation_prompt is not None:
        request.chat.add_generation_prompt = options.add_generation_prompt
    if not options.messages:
        raise RequestError("messages is []; expected at least one message", param="messages")
    return request


def prompts_of(value: Any) -> list[Prompt]:
    """Returns the prompts of `prompt`: a string, strings, token ids, or lists of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if _are(value, str) or all(isinstance(ids, list) and ids and _are(ids, int) for ids in value):
            if len(value) > MOST_PROMPTS:
                raise RequestError(f"prompt has {len(value)} prompts; expected at most {MOST_PROMPTS}", param="prompt")
            prompts = value
        elif _are(value, int):
            prompts = [value]
        else:
            raise _no_prompt(value)
        for number in (n for ids in prompts if isinstance(ids, list) for n in ids):
            if not 0 <= number < 2**32:
                raise RequestError(f"prompt has token id {number}; expected 0 to {2**32 - 1}", param="prompt")
        return prompts
    raise _no_prompt(value)


def _request(options: Options, max_tokens: int | None, top_logprobs: int | None) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(**{name: getattr(options, name) for name in _SAMPLING})
    if options.top_k is not None:
        sampling.top_k = max(0, options.top_k)
    if options.seed is not None:
        sampling.seed = options.seed % _SEEDS
    sampling.logit_bias.update(options.logit_bias or {})
    grammar = _grammar(options.response_format)
    if grammar is not None:
        sampling.grammar.CopyFrom(grammar)
    request = pb.GenerateRequest(
        model=options.model,
        sampling=sampling,
        stopping=pb.StoppingParams(
            max_tokens=max_tokens,
            min_tokens=options.min_tokens,
            stop=[options.stop] if isinstance(options.stop, str) else options.stop,
            stop_token_ids=options.stop_token_ids,
            ignore_eos=options.ignore_eos,
            include_stop=options.include_stop_str_in_output,
        ),
        response=pb.ResponseOptions(
            top_logprobs=top_logprobs,
            token_bytes=None if top_logprobs is None else True,
            skip_special_tokens=options.skip_special_tokens,
        ),
        priority=options.priority,
        sticky_key=options.sticky_key or (options.user or "")[:256],
    )
    if options.max_queue_wait is not None:
        request.max_queue_wait.FromNanoseconds(int(options.max_queue_wait * 1e9))
    return request


def _grammar(form: ResponseFormat | None) -> pb.Grammar | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return pb.Grammar(json_object=pb.JsonObject())
    if form.type == "json_schema":
        schema = bytes(form.json_schema.schema) if form.json_schema is not None else b""
        if not schema:
            name = "response_format.json_schema.schema"
            raise RequestError(f"{name} is missing; it is required", param=name, code="missing_required_parameter")
        return pb.Grammar(json_schema=schema.decode())
    if form.type == "regex" and form.regex is not None:
        return pb.Grammar(regex=form.regex)
    if form.type == "lark" and form.lark is not None:
        return pb.Grammar(lark=form.lark)
    raise RequestError(
        f"response_format.type is {form.type!r}; expected text, json_object, json_schema, or regex or lark with a "
        "field of the same name",
        param="response_format.type",
    )


def _message(message: Message, place: str) -> pb.ChatMessage:
    if message.tool_calls or message.function_call:
        raise _unsupported(f"{place}.tool_calls", "set", "null: tools are not supported")
    role = "system" if message.role == "developer" else message.role  # OpenAI's newer name for it
    return pb.ChatMessage(role=role, content=_content(message.content, f"{place}.content"))


def _content(value: Any, place: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RequestError(
            f"{place} is {value!r:.80}; expected a string or a list of parts", param=place, code="invalid_type"
        )
    return "\n".join(_part(part, f"{place}[{i}]") for i, part in enumerate(value))


def _part(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text":
        raise _unsupported(f"{place}.type", kind, "'text': the models read text only, no images, audio or files")
    if not isinstance(text, str):
        raise RequestError(
            f"{place}.text is {text!r:.80}; expected a string", param=f"{place}.text", code="invalid_type"
        )
    return text


def _check_chat(options: ChatOptions) -> None:
    for name in ("tools", "functions", "audio", "prediction", "web_search_options"):
        if getattr(options, name):
            raise _unsupported(name, "set", "null")
    for name in ("tool_choice", "function_call"):
        if getattr(options, name) not in (None, "none", "auto"):
            raise _unsupported(name, getattr(options, name), "null, 'none' or 'auto'")
    if options.modalities not in (None, ["text"]):
        raise _unsupported("modalities", options.modalities, "null or ['text']")
    if options.top_logprobs is not None and not options.logprobs:
        raise RequestError(
            f"top_logprobs is {options.top_logprobs} and logprobs is not true; expected both", param="top_logprobs"
        )
    if options.max_tokens is not None and options.max_completion_tokens not in {None, options.max_tokens}:
        raise RequestError(
            f"max_tokens is {options.max_tokens} and max_completion_tokens {options.max_completion_tokens}; they mean "
            "the same, expected one of them",
            param="max_tokens",
        )


def _are(values: Sequence[object], kind: type) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _no_prompt(value: object) -> RequestError:
    return RequestError(
        f"prompt is {value!r:.80}; expected a string, strings, token ids or lists of token ids, and at least one",
        param="prompt",
        code="invalid_type",
    )


def _unsupported(name: str, found: object, expected: str) -> RequestError:
    return RequestError(
        f"{name} is {found!r:.80}, which is not supported; expected {expected}",
        param=name,
        code="unsupported_parameter",
    )
