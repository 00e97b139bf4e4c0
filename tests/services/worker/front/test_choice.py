"""Tokens of one choice become chunks and an end."""

import pytest

from deltaserve.v1 import inference_pb2 as pb
from services.worker.front.choice import Choice
from services.worker.front.detokenize import Detokenizer
from services.worker.front.tokenizer import Encoding
from services.worker.front.validation import Stopping
from services.worker.messages import Logprobs, Output

END = 0  # <|end|>


def choice_of(gpt: Encoding, *stops: str, include: bool = False, min_tokens: int = 0) -> Choice:
    stopping = Stopping(stops, include, min_tokens, frozenset({END}))
    return Choice(0, Detokenizer(gpt.decode, (), gpt.special), stopping)


def feed(choice: Choice, ids: list[int], finish: str = "") -> tuple[str, list[int], pb.Finished | None]:
    text, finished = "", None
    tokens: list[int] = []
    for number, token in enumerate(ids):
        last = finish if number == len(ids) - 1 else ""
        output = Output(sequence=1, tokens=[token], finish=last, stop_token=token if last == "stop" else None)
        for frame in choice.take(output, float(number)):
            text += frame.chunk.text
            tokens += frame.chunk.token_ids
            finished = frame.finished if frame.HasField("finished") else finished
    return text, tokens, finished


def test_end_of_sequence(gpt: Encoding) -> None:
    ids = gpt.encode("the fox", add_special_tokens=False)
    choice = choice_of(gpt)
    text, tokens, finished = feed(choice, [*ids, END], "stop")
    assert (text, tokens) == ("the fox", [*ids, END])
    assert finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop_token_id=END)
    assert choice.tokens == choice.fresh_tokens == len(ids) + 1
    assert (choice.first_token_at, choice.last_token_at) == (0.0, float(len(ids)))


def test_a_stop_token_that_is_text_is_cut(gpt: Encoding) -> None:
    ids = gpt.encode("the fox.", add_special_tokens=False)
    assert feed(choice_of(gpt), ids, "stop")[0] == "the fox"
    assert feed(choice_of(gpt, include=True), ids, "stop")[0] == "the fox."


def test_length_shows_what_was_held_back(gpt: Encoding) -> None:
    ids = gpt.encode("the fox ju", add_special_tokens=False)
    text, _, finished = feed(choice_of(gpt, "jumps"), ids, "length")
    assert text == "the fox ju"
    assert finished == pb.Finished(reason=pb.FINISH_REASON_LENGTH)


def test_stop_string(gpt: Encoding) -> None:
    ids = gpt.encode("the quick brown fox jumps", add_special_tokens=False)
    choice = choice_of(gpt, "own f")
    text, tokens, finished = feed(choice, ids)
    assert text == "the quick br"
    assert finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop_string="own f")
    assert choice.finished
    assert gpt.decode(tokens).startswith("the quick brown f")
    assert choice.take(Output(sequence=1, tokens=[5]), 0.0) == []
    assert feed(choice_of(gpt, "own f", include=True), ids)[0] == "the quick brown f"


def test_several_tokens_at_once(gpt: Encoding) -> None:
    ids = gpt.encode("the quick brown fox", add_special_tokens=False)
    position = next(i for i in range(len(ids)) if "brown" in gpt.decode(ids[: i + 1]))
    (chunk, finished) = choice_of(gpt, "brown").take(Output(sequence=1, tokens=ids), 0.0)
    assert chunk.chunk.text == "the quick "
    assert list(chunk.chunk.token_ids) == ids[: position + 1]
    assert finished.finished.stop_string == "brown"


def test_no_stop_string_before_min_tokens(gpt: Encoding) -> None:
    ids = gpt.encode("fox", add_special_tokens=False) * 4
    count = len(ids) // 4
    assert feed(choice_of(gpt, "fox", min_tokens=2 * count), ids)[0] == "foxfox"


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_resumed_choice_goes_on_where_it_was(gpt: Encoding, cut: int) -> None:
    ids = gpt.encode("naïve 日本 fox jumps", add_special_tokens=False)
    stops = ("ox ju",)
    whole, _, _ = feed(choice_of(gpt, *stops), ids)
    begun, tokens, _ = feed(choice_of(gpt, *stops), ids[:cut])
    resumed = choice_of(gpt, *stops)
    assert resumed.resume(tokens, 100) == []
    rest, _, finished = feed(resumed, ids[cut:])
    assert begun + rest == whole == "naïve 日本 f"
    assert finished is not None
    assert resumed.fresh_tokens == resumed.tokens - cut


def test_a_choice_that_was_complete_says_so_again(gpt: Encoding) -> None:
    ids = gpt.encode("the fox", add_special_tokens=False)
    (frame,) = choice_of(gpt).resume([*ids, END], 100)
    assert frame.finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop_token_id=END)
    (frame,) = choice_of(gpt).resume(ids, len(ids))
    assert frame.finished.reason == pb.FINISH_REASON_LENGTH
    (frame,) = choice_of(gpt, "fox").resume(ids, 100)
    assert frame.finished.stop_string == "fox"


def test_logprobs(gpt: Encoding) -> None:
    output = Output(sequence=1, tokens=[7, 8], logprobs=[Logprobs(-1.0, [7, 9], [-1.0, -2.0]), Logprobs(-3.0, [], [])])
    (frame,) = choice_of(gpt).take(output, 0.0)
    first, second = frame.chunk.logprobs
    assert (first.chosen.token_id, first.chosen.value) == (7, -1.0)
    assert [(t.token_id, t.value) for t in first.top] == [(7, -1.0), (9, -2.0)]
    assert (second.chosen.token_id, second.chosen.value, len(second.top)) == (8, -3.0, 0)
