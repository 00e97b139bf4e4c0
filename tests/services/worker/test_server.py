"""A worker process over a real socket: what a router gets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from deltaserve.errors import (
    BaseMismatchError,
    DataLossError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
)
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from tests.services.worker.conftest import WorkerProcess, World
from tests.services.worker.router_peer import RouterPeer

LONG = {"max_tokens": 1900}


async def test_the_base_streams(peer: RouterPeer, ask: Any) -> None:
    stream = await peer.generate(ask(), age=Duration(seconds=2))
    assert stream.kinds()[-3:] == ["chunk", "finished", "summary"]
    assert len(stream.tokens()) == 16
    assert stream.finished() == pb.Finished(reason=pb.FINISH_REASON_LENGTH)
    summary = stream.summary
    assert summary.usage == pb.Usage(prompt_tokens=5, completion_tokens=16)
    assert (summary.worker, summary.seed, summary.source_tier) == ("w", 1, pb.TIER_UNSPECIFIED)
    timings = summary.timings
    assert 2 <= timings.queue.ToSeconds() <= timings.time_to_first_token.ToSeconds() <= timings.total.ToSeconds()
    assert timings.inter_token.ToNanoseconds() > 0
    assert peer.welcome.context_length == 2048
    assert peer.welcome.base_model == "base"
    assert len(peer.welcome.base_fingerprint) == 64


async def test_text_is_the_decoded_tokens(peer: RouterPeer, ask: Any) -> None:
    stream = await peer.generate(ask(stopping={"max_tokens": 200}))
    # the model is random, so most of its bytes are no text at all
    data = bytes(BYTES[token - 1] for token in stream.tokens() if token)
    assert stream.text() == data.decode(errors="replace")


async def test_a_fine_tune_loads_and_streams(peer: RouterPeer, ask: Any) -> None:
    stream = await peer.generate(ask(), "red@1")
    progress = [f.progress for f in stream.frames if f.HasField("progress")]
    if stream.summary.source_tier == pb.TIER_STORE:  # else another test asked for it first
        loading = [p for p in progress if p.stage == pb.STAGE_LOADING]
        assert loading
        assert loading[-1].bytes_total > 0
    assert progress[-1].stage == pb.STAGE_PREFILL
    assert stream.tokens() != (await peer.generate(ask())).tokens()
    again = await peer.generate(ask(), "red@1")
    assert again.tokens() == stream.tokens()
    assert again.summary.source_tier in {pb.TIER_DEVICE, pb.TIER_DECODED}
    await peer.wait_state(lambda s: s.delta_bytes_used and any(r.revision == "red@1" for r in s.residency))
    await peer.wait_state(lambda s: s.arrivals["red@1"] >= 2)


async def test_one_message_a_step(peer: RouterPeer, ask: Any) -> None:
    alone = {r: (await peer.generate(ask(text), r)).tokens() for text, r in MIX}
    peer.steps.clear()
    names = [await peer.submit(ask(text, stopping={"max_tokens": 64}), r) for _ in range(4) for text, r in MIX]
    streams = [await peer.wait(name) for name in names]
    for stream, (_, revision) in zip(streams, MIX * 4, strict=True):
        assert stream.tokens()[:16] == alone[revision]
    chunks = sum(f.HasField("chunk") for s in peer.steps for o in s.outputs for f in o.frames)
    assert chunks == 64 * 16
    assert len(peer.steps) < chunks / 4
    for step in peer.steps:
        assert len({o.request_id for o in step.outputs}) == len(step.outputs)


async def test_stop_strings(peer: RouterPeer, ask: Any) -> None:
    whole = (await peer.generate(ask(stopping={"max_tokens": 64}))).text()
    stop = whole[20:23]
    stream = await peer.generate(ask(stopping={"max_tokens": 64, "stop": [stop, "never"]}))
    assert stream.text() == whole[: whole.index(stop)]
    assert stream.finished() == pb.Finished(reason=pb.FINISH_REASON_STOP, stop_string=stop)
    assert stream.summary.usage.completion_tokens < 64
    kept = await peer.generate(ask(stopping={"max_tokens": 64, "stop": [stop], "include_stop": True}))
    assert kept.text() == whole[: whole.index(stop) + len(stop)]


async def test_stop_tokens(peer: RouterPeer, ask: Any) -> None:
    tokens = (await peer.generate(ask())).tokens()
    stream = await peer.generate(ask(stopping={"stop_token_ids": [tokens[3]]}))
    assert stream.finished().reason == pb.FINISH_REASON_STOP
    assert stream.finished().stop_token_id == tokens[3]
    assert stream.tokens() == tokens[: tokens.index(tokens[3]) + 1]


async def test_choices_and_seeds(peer: RouterPeer, ask: Any) -> None:
    sampled = {"temperature": 1.0}
    three = await peer.generate(ask(sampling=sampled | {"n": 3}), seed=7)
    assert sum(f.HasField("summary") for f in three.frames) == 1
    assert three.summary.usage == pb.Usage(prompt_tokens=5, completion_tokens=48)
    for index in range(3):
        alone = await peer.generate(ask(sampling=sampled), seed=7 + index)
        assert alone.tokens() == three.tokens(index)
    assert three.tokens(0) != three.tokens(1)


async def test_a_resumed_request_goes_on(peer: RouterPeer, ask: Any) -> None:
    request = ask(sampling={"temperature": 1.0, "n": 2}, stopping={"max_tokens": 24})
    whole = await peer.generate(request, "green@1", seed=3)
    had = [whole.tokens(0)[:10], whole.tokens(1)]
    rest = await peer.generate(request, "green@1", seed=3, resume=[pb.TokenIds(ids=ids) for ids in had])
    assert had[0] + rest.tokens(0) == whole.tokens(0)
    assert rest.tokens(1) == []
    assert rest.finished(1).reason == pb.FINISH_REASON_LENGTH
    assert rest.summary.usage == whole.summary.usage


async def test_logprobs(peer: RouterPeer, ask: Any) -> None:
    stream = await peer.generate(ask(response=pb.ResponseOptions(top_logprobs=3)))
    for chunk in (f.chunk for f in stream.frames if f.HasField("chunk")):
        (logprobs,) = chunk.logprobs
        assert logprobs.chosen.token_id == logprobs.top[0].token_id == chunk.token_ids[0]
        assert len(logprobs.top) == 3
        assert logprobs.top[0].value >= logprobs.top[1].value >= logprobs.top[2].value


async def test_chat_and_token_ids_are_the_same_prompt(peer: RouterPeer, ask: Any) -> None:
    chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hi")])
    answer = await peer.generate(ask(chat=chat))
    request = wpb.TokenizePromptRequest(revision="red@1", request=pb.TokenizeRequest(chat=chat))
    tokenized = (await peer.stub.TokenizePrompt(request)).response
    assert "".join(tokenized.pieces) == "user: hi\nbot: "
    assert tokenized.context_length == 2048
    again = await peer.generate(ask(token_ids=pb.TokenIds(ids=tokenized.token_ids)))
    assert again.tokens() == answer.tokens()


async def test_refusals_name_what_is_wrong(peer: RouterPeer, ask: Any) -> None:
    late = await peer.fail(ask("x" * 2048))
    assert isinstance(late, InvalidArgumentError)
    assert late.metadata == {"prompt_tokens": "2048", "context_length": "2048"}
    assert "2048 tokens" in late.message
    many = await peer.fail(ask(stopping={"max_tokens": 2044}))
    assert isinstance(many, InvalidArgumentError)
    assert many.field == "stopping.max_tokens"
    assert isinstance(await peer.fail(pb.GenerateRequest()), InvalidArgumentError)
    unknown = await peer.fail(ask(), "nobody@1")
    assert isinstance(unknown, NotFoundError)
    assert (unknown.kind, unknown.name) == ("revision", "nobody@1")
    assert isinstance(await peer.fail(ask(), "../etc@1"), InvalidArgumentError)
    stranger = await peer.fail(ask(), "stranger@1")
    assert isinstance(stranger, BaseMismatchError)
    assert stranger.metadata == {"found": "0" * 64, "expected": peer.welcome.base_fingerprint}
    assert (await peer.generate(ask())).summary.usage.completion_tokens == 16  # nobody else noticed


async def test_a_corrupt_delta_is_refused_until_repaired(peer: RouterPeer, ask: Any, world: World) -> None:
    error = await peer.fail(ask(), "broken@1")
    assert isinstance(error, DataLossError)
    assert "delta.safetensors" in error.message
    names = [await peer.submit(ask(), "broken@1") for _ in range(3)]
    for name in names:
        assert isinstance((await peer.wait(name)).error, DataLossError)
    (world.store / "deltas" / "broken" / "1" / "delta.safetensors").write_bytes((world.store / "good").read_bytes())
    async with asyncio.timeout(60):
        while (stream := await peer.wait(await peer.submit(ask(), "broken@1"))).error is not None:
            await asyncio.sleep(0.1)  # it is left alone for a while
    assert len(stream.tokens()) == 16


async def test_a_rotten_disk_cache_is_replaced(worker: WorkerProcess, peer: RouterPeer, ask: Any) -> None:
    tokens = (await peer.generate(ask(), "green@1")).tokens()
    await peer.call.write(wpb.SessionRequest(place=wpb.Place(revision="green@1", tier=pb.TIER_STORE)))
    await peer.wait_state(lambda s: any(r.revision == "green@1" and r.tier == pb.TIER_DISK for r in s.residency))
    payload = worker.cache / "deltas" / "green" / "1" / "delta.safetensors"
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(data)
    assert isinstance(await peer.fail(ask(), "green@1"), DataLossError)
    again = await peer.generate(ask(), "green@1")
    assert again.tokens() == tokens
    assert again.summary.source_tier == pb.TIER_STORE


async def test_abort_frees_memory(peer: RouterPeer, ask: Any) -> None:
    total = peer.state.kv_blocks_total or (await peer.wait_state(lambda s: s.kv_blocks_total)).kv_blocks_total
    await peer.wait_state(lambda s: s.kv_blocks_free == total and not s.running)
    name = await peer.submit(ask(sampling={"n": 2}, stopping=LONG), "red@1")
    await peer.wait(name, lambda s: len(s.tokens()) > 8)
    await peer.wait_state(lambda s: s.kv_blocks_free < total)
    await peer.abort(name)
    await peer.wait_state(lambda s: s.kv_blocks_free == total and not s.running)
    count = len(peer.streams[name].frames)
    await asyncio.sleep(0.3)
    assert len(peer.streams[name].frames) == count
    assert not peer.streams[name].done


async def test_a_lost_session_frees_memory(worker: WorkerProcess, connect: Any, peer: RouterPeer, ask: Any) -> None:
    other = await connect(worker)
    names = [await other.submit(ask(stopping=LONG)) for _ in range(4)]
    for name in names:
        await other.wait(name, lambda s: len(s.tokens()) > 4)
    other.call.cancel()
    state = await peer.wait_state(lambda s: not s.running and s.kv_blocks_free == s.kv_blocks_total)
    assert state.waiting == 0


async def test_deadlines(peer: RouterPeer, ask: Any) -> None:
    stream = await peer.generate(ask(stopping=LONG), remaining_ms=300)
    assert isinstance(stream.error, DeadlineError)
    assert int(stream.error.metadata["tokens_emitted"]) == len(stream.tokens()) > 0
    await peer.wait_state(lambda s: not s.running and s.kv_blocks_free == s.kv_blocks_total)
    late = await peer.fail(ask(max_queue_wait=Duration(seconds=1)), age=Duration(seconds=2))
    assert isinstance(late, DeadlineError)
    assert "max_queue_wait of 1 s" in late.message
    assert isinstance(await peer.fail(ask(), remaining_ms=0), DeadlineError)


async def test_a_paused_request_waits(peer: RouterPeer, ask: Any) -> None:
    name = await peer.submit(ask(stopping={"max_tokens": 300}))
    await peer.wait(name, lambda s: len(s.tokens()) > 4)
    await peer.call.write(wpb.SessionRequest(pause=wpb.Pause(request_id=name, paused=True)))
    await asyncio.sleep(0.3)
    count = len(peer.streams[name].tokens())
    await asyncio.sleep(0.3)
    assert len(peer.streams[name].tokens()) == count < 300
    await peer.call.write(wpb.SessionRequest(pause=wpb.Pause(request_id=name, paused=False)))
    assert len((await peer.wait(name)).tokens()) == 300


async def test_orders_move_deltas(peer: RouterPeer, ask: Any) -> None:
    def tier(state: wpb.StateReport) -> int:
        return next((r.tier for r in state.residency if r.revision == "blue@1"), pb.TIER_STORE)

    place = wpb.Place(revision="blue@1", tier=pb.TIER_DEVICE, pinned=True)
    await peer.call.write(wpb.SessionRequest(place=place))
    await peer.wait_state(lambda s: tier(s) in {pb.TIER_DEVICE, pb.TIER_DECODED})
    assert (await peer.generate(ask(), "blue@1")).summary.source_tier in {pb.TIER_DEVICE, pb.TIER_DECODED}
    await peer.call.write(wpb.SessionRequest(place=wpb.Place(revision="blue@1", tier=pb.TIER_STORE)))
    await peer.wait_state(lambda s: tier(s) == pb.TIER_DISK)
    assert (await peer.generate(ask(), "blue@1")).summary.source_tier == pb.TIER_DISK


async def test_a_session_begins_with_hello(worker: WorkerProcess, peer: RouterPeer) -> None:
    import grpc

    call = peer.stub.Session()
    await call.write(wpb.SessionRequest(abort=wpb.Abort(request_id="x")))
    with pytest.raises(grpc.aio.AioRpcError, match="must be hello"):
        await call.read()


MIX = [("hello", ""), ("bonjour", "red@1"), ("hallo", "green@1"), ("hei", "blue@1")]


def _byte_of_token() -> list[int]:
    """Byte of each character of the byte-level alphabet, in the order in which the test's vocabulary lists it."""
    from tokenizers import pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    return [table[c] for c in sorted(pre_tokenizers.ByteLevel.alphabet())]


BYTES = _byte_of_token()
