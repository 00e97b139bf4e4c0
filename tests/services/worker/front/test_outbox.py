"""What gathers while a write is in flight leaves in one message."""

from collections.abc import AsyncIterator

import pytest

from deltaserve.errors import SlowConsumerError, UnavailableError
from deltaserve.rpc.status import error_from_status
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2
from services.worker.front import outbox as module
from services.worker.front.outbox import Outbox


def chunk(text: str, logprobs: int = 0) -> pb.GenerateResponse:
    tops = [pb.TokenLogprobs(top=[pb.Logprob(token_id=i, value=-1.0) for i in range(logprobs)])] if logprobs else []
    return pb.GenerateResponse(chunk=pb.Chunk(text=text, logprobs=tops))


async def next_of(messages: AsyncIterator[worker_pb2.SessionResponse]) -> worker_pb2.SessionResponse:
    return await anext(messages)


async def test_one_message_for_a_step_of_many_requests() -> None:
    outbox = Outbox()
    outbox.report(worker_pb2.StateReport(running=1))
    outbox.report(worker_pb2.StateReport(running=2))
    outbox.welcome(worker_pb2.Welcome(worker="w"))
    for step in range(2):
        for key in range(5):
            outbox.emit(key, f"r{key}", [chunk(f"{step}")])
    outbox.emit(9, "none", [])
    outbox.fail(3, "r3", UnavailableError("gone"))
    messages = outbox.messages()
    assert (await next_of(messages)).welcome.worker == "w"
    outputs = (await next_of(messages)).outputs.outputs
    assert [o.request_id for o in outputs] == [f"r{key}" for key in range(5)]
    assert [f.chunk.text for f in outputs[0].frames] == ["0", "1"]
    assert str(error_from_status(outputs[3].error_status)) == "gone"
    assert (await next_of(messages)).state.running == 2  # the newest report only
    outbox.emit(1, "r1", [chunk("later")])
    assert [o.request_id for o in (await next_of(messages)).outputs.outputs] == ["r1"]


async def test_the_end_comes_after_everything() -> None:
    outbox = Outbox()
    outbox.emit(1, "r", [chunk("last")])
    outbox.end()
    assert [m.outputs.outputs[0].frames[0].chunk.text async for m in outbox.messages()] == ["last"]
    failing = Outbox()
    failing.emit(1, "r", [chunk("last")])
    failing.end(UnavailableError("no engine"))
    messages = failing.messages()
    await next_of(messages)
    with pytest.raises(UnavailableError, match="no engine"):
        await next_of(messages)


async def test_large_outputs_are_spread_over_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MESSAGE_BYTES", 10_000)
    outbox = Outbox()
    for step in range(6):
        outbox.emit(1, "r", [chunk(str(step), logprobs=500)])  # about 5 kB
    outbox.end()
    sizes, texts = [], ""
    async for message in outbox.messages():
        sizes.append(message.ByteSize())
        texts += "".join(o.frames[0].chunk.text for o in message.outputs.outputs)
    assert texts == "012345"
    assert len(sizes) > 1
    assert max(sizes) < 11_000


async def test_a_router_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKLOG_FRAMES", 10)
    outbox = Outbox()
    for _ in range(11):
        outbox.emit(1, "r", [chunk("x")])
    messages = outbox.messages()
    await next_of(messages)
    with pytest.raises(SlowConsumerError, match="11 frames unread"):
        await next_of(messages)
