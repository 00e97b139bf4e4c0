"""Streamed text is the decoded text, in whole characters, whatever the tokenizer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.front.detokenize import Detokenizer
from services.worker.front.tokenizer import Encoding

SAMPLES = ["the fox", "naïve café 日本語 😀🎉 end", "👩‍👩‍👧‍👦 family", " leading and trailing ", "a\n\n\tb", "é", ""]


def stream(encoding: Encoding, ids: list[int], **options: object) -> list[str]:
    detokenizer = Detokenizer(encoding.decode, **options)  # type: ignore[arg-type]
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", SAMPLES)
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_pieces_concatenate_to_the_text(name: str, text: str, request: pytest.FixtureRequest) -> None:
    encoding: Encoding = request.getfixturevalue(name)
    ids = encoding.encode(text, add_special_tokens=False)
    pieces = stream(encoding, ids)
    assert "".join(pieces) == text == encoding.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_characters_come_with_their_last_byte(gpt: Encoding) -> None:
    ids = [i for byte in "é😀".encode() for i in [gpt_byte(gpt, byte)]]
    assert stream(gpt, ids) == ["", "é", "", "", "", "😀", ""]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_streams(text: str) -> None:
    for encoding in ENCODINGS:
        ids = encoding.encode(text, add_special_tokens=False)
        assert "".join(stream(encoding, ids)) == encoding.decode(ids)


def test_random_tokens_stream_to_what_they_decode_to(gpt: Encoding) -> None:
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(320) for _ in range(rng.randrange(1, 60))]
        assert "".join(stream(gpt, ids)) == gpt.decode(ids)


def test_endless_invalid_bytes_are_shown_and_cost_little(gpt: Encoding) -> None:
    calls = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return gpt.decode(ids)

    detokenizer = Detokenizer(decode)
    ids = [gpt_byte(gpt, 0xFF)] * 1000
    text = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    assert text == "\ufffd" * 1000
    assert max(calls) <= 70


def test_an_unfinished_character_is_flushed(gpt: Encoding) -> None:
    ids = [gpt_byte(gpt, byte) for byte in "a€".encode()[:-1]]
    assert stream(gpt, ids) == ["a", "", "", "\ufffd"]


def test_output_goes_on_after_the_prompt(llama: Encoding) -> None:
    prompt = llama.encode("on the", add_special_tokens=True)
    ids = llama.encode("the", add_special_tokens=False)
    assert "".join(stream(llama, ids)) == "the"
    assert "".join(stream(llama, ids, context=prompt)) == " the"


def test_a_character_that_the_prompt_began_is_whole(gpt: Encoding) -> None:
    first, last = (gpt_byte(gpt, byte) for byte in "é".encode())
    assert stream(gpt, [last], context=[first]) == ["é", ""]


def test_special_tokens_are_hidden_or_shown(gpt: Encoding) -> None:
    ids = gpt.encode("fox<|end|> fox", add_special_tokens=False)
    assert "".join(stream(gpt, ids)) == "fox<|end|> fox"
    assert "".join(stream(gpt, ids, hidden=gpt.special)) == "fox fox"


def gpt_byte(encoding: Encoding, byte: int) -> int:
    """Token id of a single byte."""
    return BYTES[byte]


@pytest.fixture(autouse=True, scope="module")
def _encodings(gpt: Encoding, llama: Encoding) -> None:
    ENCODINGS[:] = [gpt, llama]
    for number in range(320):
        data = gpt._tokenizer.id_to_token(number)
        if len(data) == 1:
            BYTES[UNICODE_TO_BYTE[data]] = number


def _unicode_to_byte() -> dict[str, int]:
    """The byte-level alphabet of GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


ENCODINGS: list[Encoding] = []
BYTES: dict[int, int] = {}
UNICODE_TO_BYTE = _unicode_to_byte()
