"""Sequences that follow grammars, on a random model: what comes out matches whatever the weights say."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.worker.engine.grammars import Grammars
from services.worker.messages import Abort, Add, Pause, Sampling, Vocabulary

PRINTABLE = [chr(c) for c in range(0x21, 0x7F)]  # 94 tokens, and two specials
END, OTHER_END = 94, 95
PROMPT = [5, 9, 2, 77, 30]


def tokenizer_json() -> bytes:
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(PRINTABLE)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|other|>"])
    return tokenizer.to_str().encode()


VOCABULARY = Vocabulary(key="v", tokenizer=tokenizer_json(), size=96, eos=[END, OTHER_END])


def text(tokens: list[int]) -> str:
    return "".join(PRINTABLE[t] for t in tokens if t < END)


def regex(pattern: str) -> str:
    return str(LLMatcher.grammar_from_regex(pattern))


@pytest.fixture
def rig(llama, make_rig):
    rig = make_rig(llama)
    rig.engine.handle(VOCABULARY, 0.0)
    return rig


def add(rig: Any, number: int, grammar: str, vocabulary: str = "v", **options: Any) -> None:
    resume = options.pop("resume", [])
    options = {"temperature": 1.0, "seed": number, "max_tokens": 40, "stop_token_ids": [END, OTHER_END]} | options
    message = Add(
        sequence=number, revision="", prompt=PROMPT, resume=resume, sampling=Sampling(**options), grammar=grammar,
        vocabulary=vocabulary,
    )  # fmt: skip
    rig.engine.handle(message, rig.now)


def run(rig: Any, *numbers: int) -> None:
    end = time.monotonic() + 120
    while not all(number in rig.outputs and rig.outputs[number][-1].finish for number in numbers):
        assert time.monotonic() < end, rig.outputs
        rig.step()


def test_outputs_match_and_free_sequences_are_not_disturbed(rig):
    rig.add(1, PROMPT, temperature=1.0, seed=3, max_tokens=12)
    rig.run()
    add(rig, 2, regex(r"[a-c]{3}-[0-9]{2}"))
    rig.add(3, PROMPT, temperature=1.0, seed=3, max_tokens=12)
    add(rig, 4, regex(r"(yes|no)"))
    run(rig, 2, 3, 4)
    assert re.fullmatch(r"[a-c]{3}-[0-9]{2}", text(rig.tokens(2)))
    assert text(rig.tokens(4)) in {"yes", "no"}
    assert rig.tokens(3) == rig.tokens(1)
    # nothing could follow, so no step was spent on an end-of-sequence token
    assert [rig.finish(n) for n in (2, 4)] == ["stop", "stop"]
    assert rig.outputs[2][-1].stop_token is None
    assert len(rig.tokens(2)) == 6


def test_greedy_takes_the_best_of_what_is_allowed(rig):
    rig.add(1, PROMPT, max_tokens=1, top_logprobs=96, raw_logits=True)
    rig.run()
    (entry,) = rig.logprobs(1)
    digits = [PRINTABLE.index(c) for c in "0123456789"]
    best = next(t for t in entry.top_ids if t in digits)
    add(rig, 2, regex("[0-9]"), temperature=0.0)
    run(rig, 2)
    assert rig.tokens(2) == [best]


def test_bias_moves_within_the_grammar_only(rig):
    one, letter = PRINTABLE.index("1"), PRINTABLE.index("x")
    add(rig, 1, regex("[0-9]{4}"), logit_bias={one: 100.0, letter: 100.0})
    run(rig, 1)
    assert text(rig.tokens(1)) == "1111"


@pytest.mark.parametrize("end", [END, OTHER_END])
def test_any_end_of_sequence_token_ends_a_complete_output(rig, end):
    add(rig, 1, regex("[0-9]{2,30}"), logit_bias={end: 100.0})
    run(rig, 1)
    assert (len(rig.tokens(1)), rig.finish(1), rig.outputs[1][-1].stop_token) == (3, "stop", end)


def test_min_tokens_and_ignore_eos_keep_an_output_going(rig):
    bias = {END: 100.0, OTHER_END: 100.0}
    add(rig, 1, regex("[0-9]+"), logit_bias=bias, min_tokens=7)
    add(rig, 2, regex("[0-9]+"), logit_bias=bias, stop_token_ids=[], max_tokens=9)
    add(rig, 3, regex("[0-9]{5}"), logit_bias=bias, min_tokens=20)
    run(rig, 1, 2, 3)
    assert (len(rig.tokens(1)), rig.finish(1)) == (8, "stop")
    assert (len(rig.tokens(2)), rig.finish(2)) == (9, "length")
    assert text(rig.tokens(2)).isdecimal()
    assert (len(rig.tokens(3)), rig.finish(3)) == (5, "stop")  # it can get no longer


def test_a_resumed_sequence_goes_on_in_its_grammar(rig):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y", "z"]}, "b": {"type": "array", "items": {"type": "boolean"},
                       "minItems": 2, "maxItems": 3}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }  # fmt: skip
    grammar = str(LLMatcher.grammar_from_json_schema(schema))
    add(rig, 1, grammar, seed=11, max_tokens=100)
    run(rig, 1)
    value = json.loads(text(rig.tokens(1)))
    assert value["a"] in {"x", "y", "z"}
    for kept in (1, 6, len(rig.tokens(1)) - 1):
        add(rig, 10 + kept, grammar, seed=11, max_tokens=100, resume=rig.tokens(1)[:kept])
        run(rig, 10 + kept)
        assert rig.tokens(10 + kept) == rig.tokens(1)[kept:]
    add(rig, 90, grammar, seed=11, max_tokens=100, resume=rig.tokens(1))
    run(rig, 90)
    assert (rig.tokens(90), rig.finish(90)) == ([], "stop")


def test_errors_end_only_their_own_sequence(rig):
    add(rig, 1, regex("[0-9]"), resume=[PRINTABLE.index("x")])
    add(rig, 2, '{"grammars": [{"lark_grammar": "start: nothing"}]}')
    add(rig, 3, regex("[0-9]"), vocabulary="unknown")
    stop = PRINTABLE.index("7")
    add(rig, 4, regex("7+"), stop_token_ids=[stop], min_tokens=3)
    add(rig, 5, regex("[0-9]"))
    run(rig, 1, 2, 3, 4, 5)
    errors = {number: rig.outputs[number][-1].error for number in (1, 2, 3, 4)}
    assert all("grammar" in error for error in errors.values()), errors
    assert "unknown" in errors[3]
    assert rig.finish(5) == "stop"


def test_aborting_and_pausing_reach_sequences_whose_grammar_is_compiled():
    release = threading.Event()
    grammars = Grammars(lambda: None)
    grammars._thread.submit(release.wait)  # nothing is compiled before
    grammars.learn(VOCABULARY)
    for number in range(1, 4):
        sampling = Sampling(max_tokens=3)
        grammars.begin(
            Add(sequence=number, revision="", prompt=[1], sampling=sampling, grammar=regex("a"), vocabulary="v"), number
        )
    grammars.pause(2, True)
    grammars.pause(3, True)
    grammars.pause(3, False)
    grammars.abort(1)
    assert grammars.ready() == []
    release.set()
    found = {}
    while len(found) < 2:
        found |= {pending.add.sequence: pending for pending in grammars.ready()}
    assert {number: pending.paused for number, pending in found.items()} == {2: True, 3: False}


def test_a_paused_sequence_begins_when_it_goes_on(rig):
    add(rig, 1, regex("[0-9]"))
    rig.engine.handle(Pause(1, True), rig.now)
    for _ in range(50):
        rig.step()
    assert 1 not in rig.outputs
    rig.engine.handle(Pause(1, False), rig.now)
    run(rig, 1)
    add(rig, 2, regex("[0-9]"))
    rig.engine.handle(Abort(2), rig.now)
    for _ in range(50):
        rig.step()
    assert 2 not in rig.outputs
    assert rig.engine.idle


def test_a_forgotten_vocabulary_stays_with_its_sequences(rig):
    add(rig, 1, regex("[a-z]{20}"), max_tokens=50)
    while 1 not in rig.outputs:
        rig.step()
    rig.engine.handle(Vocabulary(key="v"), rig.now)
    add(rig, 2, regex("[a-z]"))
    run(rig, 1, 2)
    assert (rig.finish(1), rig.finish(2)) == ("stop", "error")
