"""Grammars and bytes of tokens through a worker process, as a router gets them."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb
from tests.services.worker.router_peer import RouterPeer

CARD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        "kind": {"enum": ["red", "green", 3, None]},
        "scores": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 12}, "maxItems": 3},
        "nested": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["name", "kind", "scores", "nested"],
    "additionalProperties": False,
}
RANDOM = {"temperature": 1.0}
FREE = {"max_tokens": 300, "ignore_eos": False}


def schema(value: dict[str, Any]) -> pb.Grammar:
    return pb.Grammar(json_schema=json.dumps(value))


async def test_constrained_choices_of_several_models_beside_free_ones(peer: RouterPeer, ask: Any) -> None:
    constrained = ask(sampling=RANDOM | {"grammar": schema(CARD), "n": 3}, stopping=FREE)
    free = ask("free", sampling=RANDOM)
    alone = await peer.generate(free, seed=5)
    # one after the other: a stream takes one write at a time
    names = [await peer.submit(constrained, seed=7), await peer.submit(constrained, "red@1", seed=8)]
    names.append(await peer.submit(free, seed=5))
    streams = [await peer.wait(name) for name in names]
    assert streams[2].tokens() == alone.tokens()
    for stream in streams[:2]:
        assert stream.error is None
        texts = [stream.text(index) for index in range(3)]
        for text in texts:
            jsonschema.validate(json.loads(text), CARD)
        assert len(set(texts)) == 3
        assert {stream.finished(index).reason for index in range(3)} == {pb.FINISH_REASON_STOP}


async def test_a_request_that_moved_goes_on_in_its_grammar(peer: RouterPeer, ask: Any) -> None:
    asked = ask(sampling=RANDOM | {"grammar": schema(CARD), "n": 2}, stopping=FREE)
    whole = await peer.generate(asked, "green@1", seed=21)
    first, second = whole.tokens(0), whole.tokens(1)
    kept = [pb.TokenIds(ids=first[: len(first) // 2]), pb.TokenIds(ids=second)]
    moved = await peer.generate(asked, "green@1", seed=21, resume=kept)
    assert first[: len(first) // 2] + moved.tokens(0) == first
    assert moved.tokens(1) == []
    assert moved.finished(1).reason == pb.FINISH_REASON_STOP
    assert moved.summary.usage.completion_tokens == len(first) + len(second)


async def test_stop_strings_cut_a_constrained_output(peer: RouterPeer, ask: Any) -> None:
    stream = await peer.generate(
        ask(sampling=RANDOM | {"grammar": pb.Grammar(regex="[a-z]{4}-[0-9]{4}")}, stopping=FREE | {"stop": ["-"]})
    )
    assert re.fullmatch("[a-z]{4}", stream.text())
    assert stream.finished().stop_string == "-"


async def test_a_bad_grammar_is_refused_and_the_session_goes_on(peer: RouterPeer, ask: Any) -> None:
    error = await peer.fail(ask(sampling={"grammar": schema({"type": "object", "not": {}})}))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "sampling.grammar.json_schema"
    assert '"not"' in error.message
    assert len((await peer.generate(ask())).tokens()) == 16


@pytest.mark.parametrize("asked", [True, False])
async def test_bytes_of_tokens_come_when_asked_for(peer: RouterPeer, ask: Any, asked: bool) -> None:
    stream = await peer.generate(ask(response=pb.ResponseOptions(top_logprobs=2, token_bytes=asked)))
    entries = [entry for f in stream.frames if f.HasField("chunk") for entry in f.chunk.logprobs]
    assert len(entries) == 16
    if not asked:
        assert not any(e.chosen.token_bytes or e.top[0].token_bytes for e in entries)
        return
    assert b"".join(e.chosen.token_bytes for e in entries).decode(errors="replace") == stream.text()
    assert all(len(top.token_bytes) == 1 or top.token_id == 0 for e in entries for top in e.top)
