import json
import random
from typing import Any

import pytest

from deltaserve.v1 import inference_pb2 as pb
from services.router.http.body import decode
from services.router.http.errors import RequestError
from services.router.http.fields import ChatOptions, CompletionOptions
from services.router.http.translation import MOST_PROMPTS, chat_request, completion_requests, prompts_of


def completion(**fields: Any) -> list[pb.GenerateRequest]:
    body = json.dumps({"model": "m", "prompt": "p"} | fields).encode()
    return completion_requests(decode(body, CompletionOptions))


def chat(**fields: Any) -> pb.GenerateRequest:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields).encode()
    return chat_request(decode(body, ChatOptions))


def refused(call: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(**fields)
    return caught.value


def test_every_parameter_has_its_place() -> None:
    seed = random.randrange(2**63)
    (request,) = completion(
        temperature=0.5, top_p=0.75, n=3, stop="s", seed=seed, presence_penalty=0.5, frequency_penalty=-0.5,
        logit_bias={"7": -100}, max_tokens=9, top_k=-1, min_p=0.25, repetition_penalty=1.5, min_tokens=2,
        ignore_eos=True, stop_token_ids=[4, 5], include_stop_str_in_output=True, skip_special_tokens=False,
        priority=-2, max_queue_wait=1.5, add_special_tokens=False, logprobs=2, user="u", metadata={"a": 1},
    )  # fmt: skip
    expected = pb.GenerateRequest(
        model="m",
        text="p",
        sampling=pb.SamplingParams(
            temperature=0.5, top_p=0.75, n=3, seed=seed, presence_penalty=0.5, frequency_penalty=-0.5,
            logit_bias={7: -100}, top_k=0, min_p=0.25, repetition_penalty=1.5,
        ),
        stopping=pb.StoppingParams(
            max_tokens=9, min_tokens=2, stop=["s"], stop_token_ids=[4, 5], ignore_eos=True, include_stop=True
        ),
        response=pb.ResponseOptions(top_logprobs=2, token_bytes=True, skip_special_tokens=False),
        priority=-2,
        add_special_tokens=False,
        sticky_key="u",
    )  # fmt: skip
    expected.max_queue_wait.FromMilliseconds(1500)
    assert request == expected


def test_what_is_absent_stays_the_models_default() -> None:
    request = chat()
    assert request == pb.GenerateRequest(
        model="m",
        sampling=pb.SamplingParams(),
        stopping=pb.StoppingParams(),
        response=pb.ResponseOptions(),
        chat=pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hi")]),
    )
    assert completion()[0].stopping.max_tokens == 16  # OpenAI's default
    assert not completion()[0].sampling.HasField("temperature")


def test_negative_seeds_are_seeds() -> None:
    assert completion(seed=-1)[0].sampling.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_come_in_four_forms(prompt: Any, expected: list[Any]) -> None:
    assert prompts_of(prompt) == expected
    requests = completion(prompt=prompt)
    assert [r.text if r.HasField("text") else list(r.token_ids.ids) for r in requests] == expected


@pytest.mark.parametrize("prompt", [[], [[]], None, 7, {"a": 1}, ["a", 1], [1, [2]], [True], [-1], [2**32], [1.5]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    error = refused(prompts_of, value=prompt)
    assert error.field == "prompt"


def test_too_many_prompts() -> None:
    assert str(MOST_PROMPTS) in refused(completion, prompt=["a"] * (MOST_PROMPTS + 1)).message


def test_messages_of_parts_and_roles() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief", "name": "n"},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None, "annotations": []},
            {"role": "assistant", "content": None},
        ]
    )
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "be brief"), ("user", "one\ntwo"), ("assistant", "yes"), ("assistant", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:"}}], "messages[0].content[0].type"),
        ([{"type": "text", "text": "a"}, {"type": "input_audio"}], "messages[0].content[1].type"),
        ([{"type": "text"}], "messages[0].content[0].text"),
        (["a"], "messages[0].content[0].type"),
        (7, "messages[0].content"),
    ],
)
def test_what_is_not_text_is_refused(content: Any, param: str) -> None:
    error = refused(chat, messages=[{"role": "user", "content": content}])
    assert error.field == param
    assert "text" in error.message or "string" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": "required"},
        {"functions": [{}]},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "a"}},
        {"prediction": {"type": "content"}},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        {"messages": []},
        {"top_logprobs": 2},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "regex"}},
    ],
)
def test_what_has_no_equivalent_is_refused(fields: dict[str, Any]) -> None:
    error = refused(chat, **fields)
    assert error.field.partition(".")[0].partition("[")[0] in fields


@pytest.mark.parametrize("fields", [{"suffix": "s"}, {"best_of": 2}, {"echo": True, "logprobs": 1}])
def test_what_completions_cannot_do(fields: dict[str, Any]) -> None:
    assert refused(completion, **fields).field in fields


def test_what_asks_for_nothing_is_accepted() -> None:
    chat(tools=[], tool_choice="auto", functions=None, modalities=["text"], parallel_tool_calls=True, store=False)
    completion(suffix=None, best_of=1, echo=False)
    assert chat(max_tokens=4, max_completion_tokens=4).stopping.max_tokens == 4


def test_logprobs_of_chats() -> None:
    assert chat(logprobs=True).response.top_logprobs == 0
    assert chat(logprobs=True).response.HasField("top_logprobs")
    assert chat(logprobs=True, top_logprobs=5).response.top_logprobs == 5
    assert not chat(logprobs=False).response.HasField("top_logprobs")


def test_forms_of_the_output() -> None:
    schema = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert chat(response_format=form).sampling.grammar.json_schema == json.dumps(schema)  # as it was written
    assert chat(response_format={"type": "json_object"}).sampling.grammar.HasField("json_object")
    assert not chat(response_format={"type": "text"}).sampling.HasField("grammar")
    assert completion(response_format={"type": "regex", "regex": "a+"})[0].sampling.grammar.regex == "a+"
    assert completion(response_format={"type": "lark", "lark": "s"})[0].sampling.grammar.lark == "s"
