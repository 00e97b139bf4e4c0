"""The HTTP API over real sockets, with a scripted worker behind it: what the worker says, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from deltaserve import __version__
from deltaserve.catalog import ALIAS, write_setting
from deltaserve.errors import InvalidArgumentError, QuotaError
from deltaserve.store import Store
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from services.router.http.body import MOST_BYTES
from tests.services.router.conftest import (
    BASE_NAME,
    ScriptedWorker,
    chunk,
    ending,
    progress,
    publish,
    until,
)

from .conftest import client, http_routing, sdk

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASK: dict[str, Any] = {"model": BASE_NAME, "prompt": "a b c"}


async def never(worker: ScriptedWorker, submit: wpb.Submit) -> None:
    """Begins and does not end."""
    worker.emit(submit.request_id, progress(pb.STAGE_PREFILL, worker="w0"), chunk("begun", 1))
    await asyncio.Event().wait()


async def test_models_are_listed_with_revisions_and_aliases(store: str, worker: ScriptedWorker) -> None:
    for revision in ("1", "2"):
        await publish(store, "m", revision)
    await write_setting(Store.open(store), ALIAS, "live", {"target": "m@1"})
    await write_setting(Store.open(store), ALIAS, "gone", {"target": "m@7"})
    async with http_routing(store, worker) as (_, url), sdk(url) as api:
        found = {model.id: model async for model in await api.models.list()}
        assert list(found) == [BASE_NAME, "m", "m@1", "m@2", "live"]
        assert {model.object for model in found.values()} == {"model"}
        assert {model.owned_by for model in found.values()} == {"deltaserve"}
        assert found["m"].created == 1767323045  # as the manifest says
        roots = {name: model.model_dump()["root"] for name, model in found.items()}
        assert roots == {BASE_NAME: BASE_NAME, "m": "m@2", "m@1": "m@1", "m@2": "m@2", "live": "m@1"}
        for name, model in found.items():
            assert await api.models.retrieve(name) == model
        with pytest.raises(openai.NotFoundError) as missing:
            await api.models.retrieve("nope")
        assert missing.value.code == "model_not_found"


async def test_errors_have_openais_shape(store: str, worker: ScriptedWorker) -> None:
    async with http_routing(store, worker) as (_, url), client(url) as http:
        missing = await http.post("/v1/completions", json=ASK | {"model": "nope"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert missing.json()["error"].keys() == {"message", "type", "param", "code"}
        unknown = await http.post("/v1/chat/completions", json={"model": BASE_NAME, "messages": [], "x": 1})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "x")
        for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
            wrong = await http.request(method, path)
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (status, "unknown_url")
        for large in (b"x" * (MOST_BYTES + 1), _pieces(MOST_BYTES + 1)):
            refused = await http.post("/v1/completions", content=large)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_worker_refuses_has_a_status(store: str, worker: ScriptedWorker, stream: bool) -> None:
    errors = [
        (InvalidArgumentError("temperature is 7", field="sampling.temperature"), 400),
        (QuotaError("too much", subject="key", retry_seconds=2.5), 429),
    ]

    async def refuse(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, progress(pb.STAGE_QUEUED), error=errors[0][0])

    worker.script = refuse
    async with http_routing(store, worker) as (_, url), client(url) as http:
        refused = await http.post("/v1/completions", json=ASK | {"stream": stream})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
        del errors[0]
        refused = await http.post("/v1/completions", json=ASK | {"stream": stream})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")


async def test_an_error_after_the_first_token_is_an_event(store: str, worker: ScriptedWorker) -> None:
    async def fail(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, chunk("one", 1))
        worker.emit(submit.request_id, error=QuotaError("enough", subject="key"))

    worker.script = fail
    async with http_routing(store, worker) as (_, url), sdk(url) as api, client(url) as http:
        seen = ""
        with pytest.raises(openai.APIError, match="enough"):
            async for event in await api.completions.create(**ASK, stream=True):
                seen += event.choices[0].text
        assert seen == "one"
        raw = await http.post("/v1/completions", json=ASK | {"stream": True})
        assert raw.status_code == 200
        assert "[DONE]" not in raw.text
        last = json.loads(raw.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_request(store: str, worker: ScriptedWorker, stream: bool) -> None:
    worker.script = never
    async with http_routing(store, worker) as (router, url):
        async with client(url) as http:
            asking = asyncio.create_task(_read_a_bit(http, ASK | {"stream": stream, "prompt": ["a", "b"]}))
            await until(lambda: len(worker.submits) == 2)
            await asyncio.sleep(0.1)
            assert not worker.aborts
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: len(worker.aborts) == 2)
        await asyncio.wait_for(router.generations.idle(), 60)


async def test_an_error_of_one_prompt_ends_the_others(store: str, worker: ScriptedWorker) -> None:
    async def half(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        if submit.request.text == "bad":
            await until(lambda: len(worker.submits) == 2)
            worker.emit(submit.request_id, error=InvalidArgumentError("no", field="prompt"))
        else:
            await never(worker, submit)

    worker.script = half
    async with http_routing(store, worker) as (_, url), client(url) as http:
        refused = await http.post("/v1/completions", json=ASK | {"prompt": ["good", "bad"]})
        assert refused.status_code == 400
        await until(lambda: len(worker.aborts) == 1)


async def test_a_stream_is_one_event_a_piece_with_usage_and_an_end(store: str, worker: ScriptedWorker) -> None:
    async with http_routing(store, worker) as (_, url), client(url) as http:
        body = ASK | {"stream": True, "stream_options": {"include_usage": True}, "request_id": "mine"}
        raw = await http.post("/v1/completions", json=body)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["x-request-id"] == "mine"
    *lines, done = [line for line in raw.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {event["id"] for event in events} == {"mine"}
    assert "".join(c["text"] for event in events for c in event["choices"]) == "abc"
    assert events[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert {event["usage"] for event in events[:-1]} == {None}


async def test_traces_go_on_and_models_resolve(
    store: str, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    await publish(store, "m", "4")
    async with http_routing(store, worker) as (router, url), sdk(url) as api:
        run = router.generations.run

        async def spy(request: pb.GenerateRequest, write: Any, remaining: float | None, *rest: Any) -> None:
            seen.append(rest[0])
            await run(request, write, remaining, *rest)

        monkeypatch.setattr(router.generations, "run", spy)
        done = await api.completions.create(model="m", prompt="x y", extra_headers={"traceparent": TRACE})
        assert (done.model, done.choices[0].text) == ("m@4", "xy")
    assert seen == [TRACE]
    assert worker.submits[0].revision == "m@4"


async def test_echo_repeats_text_and_the_text_of_token_ids(store: str, worker: ScriptedWorker) -> None:
    async with http_routing(store, worker) as (_, url), sdk(url) as api:
        done = await api.completions.create(**ASK | {"prompt": ["a b", "c"], "echo": True})
        assert [choice.text for choice in done.choices] == ["a bab", "cc"]
        worker.script = never
        worker.tokenized.clear()
        async with await api.completions.create(**ASK | {"prompt": [5, 6], "echo": True}, stream=True) as stream:
            async for event in stream:
                assert event.choices[0].text
                break
        assert list(worker.tokenized[0].request.token_ids.ids) == [5, 6]


async def test_draining_tells_health_first_and_lets_streams_end(store: str, worker: ScriptedWorker) -> None:
    release = asyncio.Event()

    async def wait(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, chunk("begun", 1))
        await release.wait()
        worker.emit(submit.request_id, chunk("ended", 2), *ending(worker, submit, 2))

    worker.script = wait
    async with http_routing(store, worker, notice_seconds=3.0, grace_seconds=60) as (router, url), client(url) as http:
        assert (await http.get("/health")).json() == {"status": "serving"}
        assert (await http.get("/version")).json() == {"version": __version__}
        asking = asyncio.create_task(http.post("/v1/completions", json=ASK))
        await until(lambda: worker.submits)
        draining = asyncio.create_task(router.drain(_NoHost()))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        assert (await http.get("/health")).status_code == 503
        second = asyncio.create_task(http.post("/v1/completions", json=ASK))  # still admitted
        await until(lambda: len(worker.submits) == 2)
        await asyncio.sleep(3.2)
        refused = await http.post("/v1/completions", json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert not draining.done()
        release.set()
        assert [(await task).json()["choices"][0]["text"] for task in (asking, second)] == ["begunended"] * 2
        await asyncio.wait_for(draining, 60)


async def test_a_client_that_reads_nothing_is_cut_off(store: str, worker: ScriptedWorker) -> None:
    text = "x" * 4096

    async def flood(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        while not worker.pauses and not worker.aborts:
            worker.emit(submit.request_id, chunk(text, 1))
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    worker.script = flood
    async with http_routing(store, worker, buffer_bytes=100_000, slow_consumer_seconds=0.3) as (router, url):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1)
        body = json.dumps(ASK | {"stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: worker.pauses)
        assert worker.pauses[0][1]
        await until(lambda: worker.aborts)
        await asyncio.wait_for(router.generations.idle(), 60)
        writer.close()
        assert reader is not None


async def test_a_fault_of_ours_is_a_500_in_openais_shape(
    store: str, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_routing(store, worker) as (router, url), client(url) as http:

        async def break_(*_: Any) -> None:
            raise ZeroDivisionError("oh")

        monkeypatch.setattr(router.targets, "resolve", break_)
        for answer in (await http.post("/v1/completions", json=ASK), await http.get("/v1/models/m")):
            assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
            assert "ZeroDivisionError" in answer.json()["error"]["message"]


class _NoHost:
    async def set_serving(self, serving: bool) -> None:
        pass


async def _pieces(size: int) -> Any:
    for _ in range(0, size, 1 << 16):
        yield b" " * (1 << 16)


async def _read_a_bit(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for _ in response.aiter_raw():
            pass
