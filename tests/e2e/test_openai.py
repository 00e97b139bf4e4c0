"""The OpenAI-compatible API of the real stack, driven by the official SDK."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.conftest import System, prompts
from tests.e2e.test_streams import _until_idle, _worker

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "The package is"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
LONG: dict[str, Any] = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}


async def test_models_are_what_can_be_asked_for(api: AsyncOpenAI, four_models: list[str]) -> None:
    wanted = {*four_models, "conj_fr@1", "g2p@1", "section@1"}
    async with asyncio.timeout(60):  # the router looks at the store every two seconds
        while not wanted <= {model.id async for model in await api.models.list()}:
            await asyncio.sleep(0.2)
    assert (await api.models.retrieve("g2p@1")).id == "g2p@1"


async def test_completions_equal_those_of_grpc(api: AsyncOpenAI, system: System, four_models: list[str]) -> None:
    for model in four_models:
        prompt = prompts(model, 1)[0]
        ours = await system.client.complete(model, prompt, temperature=0, max_tokens=24)
        done = await api.completions.create(model=model, prompt=prompt, **GREEDY)
        assert done.choices[0].text == ours.text
        assert done.choices[0].finish_reason in {"stop", "length"}
        assert done.usage is not None
        usage = ours.summary.usage
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (
            usage.prompt_tokens,
            usage.completion_tokens,
        )
        assert done.usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert done.model == (model if model == "base" else f"{model}@1")


async def test_all_forms_of_prompts_and_their_streams(api: AsyncOpenAI, system: System) -> None:
    texts = [TEXT, "Once upon"]
    ids = [list((await system.client.tokenize("base", text)).token_ids) for text in texts]
    one = [(await api.completions.create(model="base", prompt=text, **GREEDY)).choices[0].text for text in texts]
    for prompt in (texts, ids):
        done = await api.completions.create(model="base", prompt=prompt, **GREEDY)
        assert [choice.text for choice in done.choices] == one
        streamed = {0: "", 1: ""}
        usage = None
        async for event in await api.completions.create(
            model="base", prompt=prompt, stream=True, stream_options={"include_usage": True}, **GREEDY
        ):
            usage = event.usage
            for choice in event.choices:
                streamed[choice.index] += choice.text
        assert list(streamed.values()) == one
        assert usage == done.usage
    single = await api.completions.create(model="base", prompt=ids[0], echo=True, **GREEDY)
    assert single.choices[0].text == TEXT + one[0]


async def test_chats_stream_and_do_not(api: AsyncOpenAI, system: System, four_models: list[str]) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "parler | Indicatif | Présent | 1"}]}]
    ours = await system.client.complete(
        "conj_fr", [{"role": "user", "content": "parler | Indicatif | Présent | 1"}], temperature=0, max_tokens=20
    )
    done = await api.chat.completions.create(
        model="conj_fr", messages=messages, temperature=0, max_completion_tokens=20
    )
    assert (done.choices[0].message.role, done.choices[0].message.content) == ("assistant", ours.text)
    events = [
        event
        async for event in await api.chat.completions.create(
            model="conj_fr", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == ours.text
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == ours.summary.usage.completion_tokens
    with pytest.raises(openai.BadRequestError, match="image"):
        image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com"}}]}]
        await api.chat.completions.create(model="conj_fr", messages=image)


async def test_the_sync_client(api: AsyncOpenAI, four_models: list[str]) -> None:
    def ask() -> tuple[str, str]:
        with OpenAI(base_url=str(api.base_url), api_key="any", max_retries=0) as client:
            prompt = prompts("g2p", 1)[0]
            done = client.completions.create(model="g2p", prompt=prompt, **GREEDY)
            with client.completions.create(model="g2p", prompt=prompt, stream=True, **GREEDY) as stream:
                return done.choices[0].text, "".join(event.choices[0].text for event in stream)

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed
    assert whole


async def test_seeds_choices_and_stops(api: AsyncOpenAI) -> None:
    async def ask(**options: Any) -> list[str]:
        done = await api.completions.create(
            model="base", prompt=TEXT, max_tokens=16, extra_body={"ignore_eos": True}, **options
        )
        return [choice.text for choice in done.choices]

    first, again, next_ = await asyncio.gather(ask(seed=7, n=3), ask(seed=7, n=3), ask(seed=8))
    assert first == again
    assert len(set(first)) == 3
    assert next_[0] == first[1]  # choice i draws with seed + i
    (free,) = await ask(temperature=0)
    word = free.split()[2]
    done = await api.completions.create(
        model="base", prompt=TEXT, max_tokens=16, temperature=0, stop=[word, "never there"]
    )
    assert done.choices[0].text == free[: free.index(word)]
    assert done.choices[0].finish_reason == "stop"


async def test_penalties_and_bias_change_what_comes(api: AsyncOpenAI, system: System) -> None:
    async def ids(**options: Any) -> list[int]:
        done = await api.completions.create(
            model="base", prompt=TEXT, temperature=0, max_tokens=30, logprobs=0, extra_body={"ignore_eos": True},
            **options,
        )  # fmt: skip
        assert done.choices[0].logprobs is not None
        text = done.choices[0].text
        return list((await system.client.tokenize("base", text, add_special_tokens=False)).token_ids)

    free = await ids()
    repeated = max(free, key=free.count)
    assert free.count(repeated) > 1
    banned = await ids(logit_bias={str(repeated): -100})
    assert repeated not in banned
    penalised = await ids(presence_penalty=2, frequency_penalty=2)
    assert max(map(penalised.count, penalised)) < free.count(repeated)
    assert penalised != free
    forced = await api.completions.create(
        model="base", prompt=TEXT, max_tokens=5, logit_bias={str(repeated): 100}, logprobs=0
    )
    assert forced.choices[0].logprobs is not None
    assert len(set(forced.choices[0].logprobs.tokens or [])) == 1


async def test_logprobs_have_both_shapes(api: AsyncOpenAI, system: System) -> None:
    whole = await api.completions.create(model="base", prompt=TEXT, logprobs=3, **GREEDY)
    choice = whole.choices[0]
    told = choice.logprobs
    assert told is not None
    assert told.tokens
    assert told.token_logprobs
    assert told.top_logprobs
    assert told.text_offset
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)
    assert "".join(told.tokens).startswith(choice.text)  # an end-of-sequence token may follow
    assert [choice.text[o : o + len(t)] for o, t in zip(told.text_offset, told.tokens, strict=True)][:3] == told.tokens[
        :3
    ]
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert max(top.values()) == top[token] == value  # greedy
        assert 0 < sum(map(math.exp, top.values())) <= 1.0001
    pieces = []
    async for event in await api.completions.create(model="base", prompt=TEXT, logprobs=3, stream=True, **GREEDY):
        if event.choices and event.choices[0].logprobs:
            pieces += event.choices[0].logprobs.tokens or []
    assert pieces == told.tokens
    chat = await api.chat.completions.create(
        model="base", messages=[{"role": "user", "content": TEXT}], logprobs=True, top_logprobs=2, **GREEDY
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content
    assert chat.usage is not None
    assert len(content) == chat.usage.completion_tokens
    for entry in content:
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token or entry.token.startswith("bytes:")
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert len(entry.top_logprobs) == 2
    text = b"".join(bytes(entry.bytes or []) for entry in content).decode(errors="replace")
    assert text.startswith(chat.choices[0].message.content or "")


async def test_errors_are_the_sdks(api: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await api.completions.create(model="nope", prompt="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 101}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"extra_body": {"response_format": {"type": "regex", "regex": "["}}}, "response_format"),
    ]
    for options, param in bad:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as refused:
                await api.completions.create(model="base", prompt="a", stream=stream, **options)
            assert refused.value.param == param
    with pytest.raises(openai.BadRequestError, match="2048") as long:
        await api.completions.create(model="base", prompt="word " * 4000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as late:
        await api.completions.create(model="base", prompt="a", extra_body={"max_queue_wait": 0})
    assert late.value.status_code == 504


async def test_a_client_that_leaves_frees_its_memory(api: AsyncOpenAI, system: System) -> None:
    before = await _until_idle(system)
    stream = await api.completions.create(model="base", prompt=["a", "b"], stream=True, **LONG)
    async for event in stream:
        if event.choices[0].text:
            break
    whole = asyncio.create_task(api.completions.create(model="base", prompt="c", **LONG))
    for _ in range(600):
        busy = await _worker(system)
        if busy.running == 3:
            break
        await asyncio.sleep(0.05)
    assert busy.running == 3
    assert busy.kv_blocks_free < before.kv_blocks_free
    await stream.close()
    whole.cancel()
    await asyncio.gather(whole, return_exceptions=True)
    await _until_idle(system)


async def test_health(system: System) -> None:
    async with httpx.AsyncClient(base_url=f"http://{system.stack.http_address}") as http:
        assert (await http.get("/health")).status_code == 200
