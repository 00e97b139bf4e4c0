"""The fields of requests, as OpenAI's API and servers like it name them; docs/openai.md says what they do."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Priority = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
RequestId = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,120}\Z")]  # it goes into a header
StickyKey = Annotated[str, msgspec.Meta(max_length=256)]
TopK = Annotated[int, msgspec.Meta(ge=-1, le=2**32 - 1)]  # other servers write -1 for all


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # ignored
    continuous_usage_stats: bool | None = None  # ignored: usage is known at the end


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The schema of `response_format`; it is always kept to, whatever `strict` says."""

    name: str = ""
    schema: msgspec.Raw = msgspec.Raw(b"")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the output."""

    type: str
    json_schema: JsonSchema | None = None
    regex: str | None = None
    lark: str | None = None


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions have in common. None, absent and JSON's null are the same."""

    model: str
    max_tokens: Natural | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Natural | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Natural, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    # of other servers, and our own
    top_k: TopK | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Natural | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Natural] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    sticky_key: StickyKey | None = None
    max_queue_wait: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None

    user: str | None = None  # the sticky key of those who set none

    # accepted without effect: they concern accounts and caches of OpenAI
    metadata: Any = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class CompletionOptions(Options, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/completions."""

    prompt: Any
    echo: bool | None = None
    logprobs: Natural | None = None
    add_special_tokens: bool | None = None
    best_of: Natural | None = None
    suffix: str | None = None


class Message(msgspec.Struct, kw_only=True):
    """One message; what else it holds (an earlier answer has many fields) is ignored."""

    role: str
    content: Any = None
    tool_calls: Any = None
    function_call: Any = None


class ChatOptions(Options, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: Natural | None = None
    logprobs: bool | None = None
    top_logprobs: Natural | None = None
    add_generation_prompt: bool | None = None

    # refused unless they ask for nothing
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
