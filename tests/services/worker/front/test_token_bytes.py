import random

import pytest
from tokenizers import Tokenizer, models

from deltaserve.errors import UnsupportedModelError
from services.worker.front.token_bytes import TokenBytes
from services.worker.front.tokenizer import Encoding

SAMPLES = ["the quick brown fox", "naïve café, 日本語 😀🎉", "  spaces\n\tand tabs ", "\u2581 written out"]


@pytest.mark.parametrize("text", SAMPLES)
def test_byte_level_tokens_concatenate_to_the_text(gpt: Encoding, text: str) -> None:
    ids = gpt.encode(text, add_special_tokens=False)
    assert b"".join(map(gpt.token_bytes.of, ids)) == text.encode()


def test_every_byte_has_its_token(gpt: Encoding) -> None:
    singles = {gpt.token_bytes.of(token) for token in range(320)}
    assert {bytes([byte]) for byte in range(256)} <= singles


def test_sentencepiece_tokens(llama: Encoding) -> None:
    ids = llama.encode("the cat é", add_special_tokens=True)
    pieces = [llama.token_bytes.of(token) for token in ids]
    assert pieces[0] == b"<s>"
    assert b"".join(pieces[1:]) == " the cat é".encode()  # it writes a space in front of the first word
    byte = random.randrange(256)
    assert llama.token_bytes.of(3 + byte) == bytes([byte])


def test_special_tokens_are_their_names_and_unknown_ids_nothing(gpt: Encoding) -> None:
    assert [gpt.token_bytes.of(token) for token in (0, 1, 2)] == [b"<|end|>", b"<|user|>", b"<|bot|>"]
    assert gpt.token_bytes.of(10_000) == b""


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ByteLevel"):
        TokenBytes(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
