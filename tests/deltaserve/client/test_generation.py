"""Generations of the async client against a real server."""

import asyncio
import time
from typing import Any

import pytest

from deltaserve import errors
from deltaserve.client import AsyncClient
from deltaserve.v1 import inference_pb2 as pb


async def test_frames_and_state(peer: Any) -> None:
    async with AsyncClient(peer.address) as client, client.generate("french", "a b c") as stream:
        kinds = [frame.WhichOneof("frame") async for frame in stream]
        assert kinds == ["accepted", "progress", "chunk", "chunk", "chunk", "finished", "summary"]
        assert stream.accepted is not None
        assert stream.accepted.revision == "3"
        assert stream.progress is not None
        assert stream.progress.stage == pb.STAGE_LOADING
        assert stream.summary is not None
        assert stream.summary.usage.completion_tokens == 3


async def test_text_pieces(peer: Any) -> None:
    async with AsyncClient(peer.address) as client, client.generate("french", "a b c") as stream:
        assert [piece async for piece in stream.text()] == ["a", " b", " c"]


async def test_completion_of_several_choices(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        done = await client.complete("french", "a b", n=2, temperature=0, seed=7)
    assert done.texts == ["a b", "a b"]
    assert done.token_ids == [[0, 1], [0, 1]]
    assert [f.reason for f in done.finished] == [pb.FINISH_REASON_STOP] * 2
    assert done.summary.seed == 7
    request = peer.inference.requests[0]
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")


async def test_prompts_of_three_kinds(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        await client.complete("m", [1, 2])
        await client.complete("m", [{"role": "user", "content": "hi"}])
        await client.complete("m", "hi")
        with pytest.raises(errors.InvalidArgumentError, match="'role'"):
            client.generate("m", [{"text": "hi"}])
    ids, chat, text = peer.inference.requests
    assert list(ids.token_ids.ids) == [1, 2]
    assert chat.chat.messages[0].content == "hi"
    assert text.text == "hi"


async def test_every_option_reaches_its_field(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        await client.complete(
            "m", "a", top_k=3, stop=["x"], max_tokens=4, ignore_eos=True, top_logprobs=0, logits=True, priority=-1,
            request_id="mine", max_queue_wait=1.5, add_special_tokens=False, logit_bias={3: -1.0}, timeout=30,
        )  # fmt: skip
    request = peer.inference.requests[0]
    assert request.sampling.top_k == 3
    assert dict(request.sampling.logit_bias) == {3: -1.0}
    assert list(request.stopping.stop) == ["x"]
    assert request.stopping.max_tokens == 4
    assert request.stopping.ignore_eos
    assert request.response.HasField("top_logprobs")
    assert request.response.logprob_kind == pb.LOGPROB_KIND_LOGIT
    assert (request.priority, request.client_request_id) == (-1, "mine")
    assert request.max_queue_wait.ToMilliseconds() == 1500
    assert request.HasField("add_special_tokens")


async def test_bad_options_are_refused_before_any_call(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        with pytest.raises(TypeError, match="temprature"):
            client.generate("m", "a", temprature=1)  # type: ignore[call-arg]
        with pytest.raises(errors.InvalidArgumentError):
            client.generate("m", "a", top_k=-1)
    assert not peer.inference.requests


async def test_leaving_the_block_cancels_upstream(peer: Any) -> None:
    peer.inference.delay = 0.05
    async with AsyncClient(peer.address) as client:
        async with client.generate("french", "a " * 1000) as stream:
            async for _ in stream.text():
                break
        await asyncio.to_thread(peer.wait_idle)
        with pytest.raises(ZeroDivisionError):
            async with client.generate("french", "a " * 1000) as stream:
                async for _ in stream.text():
                    raise ZeroDivisionError
        await asyncio.to_thread(peer.wait_idle)
    assert len(peer.inference.requests) == 2


async def test_cancelling_the_task_cancels_upstream(peer: Any) -> None:
    peer.inference.delay = 0.05
    async with AsyncClient(peer.address) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.complete("french", "a " * 1000)
        await asyncio.to_thread(peer.wait_idle)


async def test_cancel_ends_the_iteration(peer: Any) -> None:
    peer.inference.delay = 0.05
    async with AsyncClient(peer.address) as client, client.generate("french", "a " * 1000) as stream:
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 4:
                stream.cancel()
        assert seen == 4
        assert stream.summary is None
        await asyncio.to_thread(peer.wait_idle)


async def test_errors_are_those_the_server_raised(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        with pytest.raises(errors.NotFoundError, match="'nobody' is not published"):
            await client.complete("nobody", "a")
        pieces = []
        with pytest.raises(errors.WorkerLostError) as lost:
            async with client.generate("breaks", "a b") as stream:
                async for piece in stream.text():
                    pieces.append(piece)
        assert (pieces, lost.value.metadata["tokens_emitted"]) == (["a"], "1")
        peer.inference.delay = 0.2
        with pytest.raises(errors.DeadlineError):
            await client.complete("french", "a " * 100, timeout=0.3)
    await asyncio.to_thread(peer.wait_idle)


async def test_a_generation_is_used_once_and_only_when_entered(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        stream = client.generate("french", "a")
        with pytest.raises(RuntimeError, match="async with"):
            await anext(stream)
        async with stream:
            await stream.completion()
        with pytest.raises(RuntimeError, match="again"):
            async with stream:
                pass


async def test_an_unreachable_server_is_named() -> None:
    async with AsyncClient("127.0.0.1:1", patience=0) as client:
        with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1:1"):
            await client.complete("m", "a")
        with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1:1"):
            await client.models()


async def test_short_calls_wait_for_a_restarting_server(peer: Any) -> None:
    peer.stop()
    async with AsyncClient(peer.address) as client:
        asked = asyncio.create_task(client.models())
        await asyncio.sleep(0.3)
        assert not asked.done()
        peer.start()
        assert [m.model for m in await asked] == ["tiny", "french"]


async def test_concurrent_streams_interleave(peer: Any) -> None:
    peer.inference.delay = 0.02
    async with AsyncClient(peer.address) as client:
        started = time.monotonic()
        done = await asyncio.gather(*(client.complete("french", "a " * 10) for _ in range(16)))
    assert time.monotonic() - started < 16 * 10 * 0.02
    assert len(done) == 16
