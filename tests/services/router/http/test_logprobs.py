from deltaserve.v1 import inference_pb2 as pb
from services.router.http.logprobs import CompletionLogprobs, chat_logprobs, token_text


def entry(data: bytes, value: float, *top: tuple[bytes, float]) -> pb.TokenLogprobs:
    tops = [pb.Logprob(token_bytes=d, value=v) for d, v in top]
    return pb.TokenLogprobs(chosen=pb.Logprob(token_bytes=data, value=value), top=tops)


def test_chat_tells_tokens_and_their_bytes() -> None:
    told = chat_logprobs([entry(b"a", -0.5, (b"a", -0.5), (b"b", -2.0)), entry(b"\xe2\x82", float("-inf"))])
    assert told["content"][0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -2.0, "bytes": [98]},
        ],
    }
    assert told["content"][1] == {
        "token": "bytes:\\xe2\\x82",
        "logprob": -9999.0,
        "bytes": [0xE2, 0x82],
        "top_logprobs": [],
    }


def test_completions_tell_maps_and_offsets_across_pieces() -> None:
    writer = CompletionLogprobs(offset=10)
    first = writer.take([entry(b"ab", -1.0, (b"x", -0.25)), entry(b"\xe2\x82", -2.0, (b"\xe2\x82", -2.0))])
    second = writer.take([entry(b"\xac", -3.0, (b"y", -0.5)), entry(b"c", -4.0, (b"c", -4.0))])
    assert first["tokens"] == ["ab", "bytes:\\xe2\\x82"]
    assert first["top_logprobs"][0] == {"x": -0.25, "ab": -1.0}  # the chosen one is always told
    assert first["text_offset"] == [10, 12]
    assert second["text_offset"] == [12, 13]  # the character is whole only now
    assert second["token_logprobs"] == [-3.0, -4.0]


def test_without_top_tokens_there_is_no_map() -> None:
    assert CompletionLogprobs().take([entry(b"a", -1.0)])["top_logprobs"] is None
    assert token_text("é".encode()) == "é"
