from typing import Any

from deltaserve.v1 import inference_pb2 as pb
from services.router.http.reply import Reply
from services.router.http.writers import ChatWriter, CompletionWriter

Frames = list[tuple[int, pb.GenerateResponse]]


def chunk(place: int, index: int, text: str) -> tuple[int, pb.GenerateResponse]:
    return place, pb.GenerateResponse(chunk=pb.Chunk(index=index, text=text, token_ids=[1]))


def finished(place: int, index: int, reason: pb.FinishReason.ValueType) -> tuple[int, pb.GenerateResponse]:
    return place, pb.GenerateResponse(finished=pb.Finished(index=index, reason=reason))


def ends(place: int, prompt: int, completion: int) -> Frames:
    usage = pb.Usage(prompt_tokens=prompt, completion_tokens=completion)
    return [(place, pb.GenerateResponse(summary=pb.Summary(usage=usage)))]


def two_by_two(echoes: tuple[str, str] = ("", "")) -> Reply:
    writers = [CompletionWriter(echo, with_logprobs=False) for echo in echoes for _ in range(2)]
    return Reply("cmpl-1", "alias", "text_completion", "text_completion", False, writers, prompts=2)


FRAMES: Frames = [
    (0, pb.GenerateResponse(accepted=pb.Accepted(model="m", revision="3"))),
    (1, pb.GenerateResponse(accepted=pb.Accepted(model="m", revision="3"))),
    chunk(1, 1, "d"),
    chunk(0, 0, "a"),
    chunk(0, 1, "b"),
    chunk(1, 0, "c"),
    chunk(1, 1, "d"),
    finished(0, 0, pb.FINISH_REASON_STOP),
    finished(0, 1, pb.FINISH_REASON_LENGTH),
    *ends(0, 5, 2),
    finished(1, 0, pb.FINISH_REASON_LENGTH),
    finished(1, 1, pb.FINISH_REASON_STOP),
    *ends(1, 7, 3),
]


def test_prompts_and_choices_are_numbered_together() -> None:
    reply = two_by_two(("p", "q"))
    for place, frame in FRAMES:
        reply.collect(place, frame)
    whole = reply.whole()
    assert [(c["index"], c["text"], c["finish_reason"]) for c in whole["choices"]] == [
        (0, "pa", "stop"), (1, "pb", "length"), (2, "qc", "length"), (3, "qdd", "stop"),
    ]  # fmt: skip
    assert whole["usage"] == {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
    assert (whole["id"], whole["object"], whole["model"]) == ("cmpl-1", "text_completion", "m@3")


def test_chunks_of_a_stream_concatenate_to_the_whole() -> None:
    reply = two_by_two(("p", "q"))
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for place, frame in FRAMES:
        for event in reply.stream(place, frame):
            (choice,) = event["choices"]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
    assert texts == {0: "pa", 1: "pb", 2: "qc", 3: "qdd"}
    assert reasons == {0: "stop", 1: "length", 2: "length", 3: "stop"}
    assert reply.usage_chunk()["choices"] == []
    assert reply.usage_chunk()["usage"]["total_tokens"] == 17


def test_a_chat_says_its_role_first_and_ends_even_without_text() -> None:
    reply = Reply("chatcmpl-1", "m", "chat.completion", "chat.completion.chunk", False, [ChatWriter(False)], prompts=1)
    events: list[dict[str, Any]] = []
    for place, frame in (chunk(0, 0, ""), finished(0, 0, pb.FINISH_REASON_STOP)):
        events += reply.stream(place, frame)
    assert [event["choices"][0]["delta"] for event in events] == [{"role": "assistant", "content": ""}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, "stop"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_pieces_without_text_are_sent_only_with_logprobs() -> None:
    empty = pb.GenerateResponse(chunk=pb.Chunk(token_ids=[1], logprobs=[pb.TokenLogprobs()]))
    plain = Reply("i", "m", "k", "k", False, [CompletionWriter("", with_logprobs=False)], prompts=1)
    told = Reply("i", "m", "k", "k", True, [CompletionWriter("", with_logprobs=True)], prompts=1)
    assert plain.stream(0, empty) == []
    assert len(told.stream(0, empty)) == 1
