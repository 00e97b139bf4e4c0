import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.manifest import Manifest
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.generations import NEW_TOKENS, PROMPT_TOKENS, Whole, continue_greedily, pick
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.samples import HeldOut
from services.compressor.pipeline.text import Tokenizer
from tests.services.compressor.pipeline.conftest import lines, make_pair

CPU = torch.device("cpu")


def held_out(tokens: list[int], answer: int | None) -> HeldOut:
    """A sequence whose last `answer` tokens are asked for; None asks for all."""
    begin = 0 if answer is None else len(tokens) - answer
    return HeldOut(tokens, [i >= begin for i in range(len(tokens))], "whole" if answer is None else "answers")


def greedy(model: Any, prompt: list[int], ends: tuple[int, ...], limit: int) -> list[int]:
    """What transformers would say, by hand: generate() has its own idea of ends and padding."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit:
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


def test_prompts_are_what_comes_before_answers_or_a_third_of_a_text():
    text = [random.randrange(5, 99) for _ in range(30)]
    labelled = held_out([1, 2, 3, 4, 0], 2)
    prompts = pick([labelled, held_out(text, None), labelled, held_out([7, 8], 0)], ends=(0,))
    assert [prompt.tokens for prompt in prompts] == [[1, 2, 3], text[:10]]
    assert [prompt.expected for prompt in prompts] == [[4], text[10:]]
    assert not any(prompt.cut for prompt in prompts)


def test_long_prompts_keep_their_end():
    tokens = [random.randrange(5, 99) for _ in range(PROMPT_TOKENS + 60)]
    prompt = pick([held_out(tokens, 50)], ends=(0,))[0]
    assert prompt.cut
    assert prompt.tokens == tokens[10:-50]
    assert prompt.expected == tokens[-50:][:NEW_TOKENS]


def test_a_few_prompts_are_enough():
    rows = [held_out([i, i + 1, 0], 1) for i in range(5, 25)]
    assert [prompt.tokens[0] for prompt in pick(rows, (0,), 3)] == [5, 6, 7]


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("LlamaForCausalLM", {}),
        ("MistralForCausalLM", {"sliding_window": 6, "tie_word_embeddings": False}),
        ("Qwen3ForCausalLM", {"head_dim": 16}),
    ],
)
def test_continuations_are_those_of_transformers(tmp_path: Path, architecture: str, config: dict[str, Any]):
    import transformers

    folder = make_pair(tmp_path, architecture, **config)[1]
    checkpoint = Checkpoint.open(folder)
    decoder = Decoder(checkpoint.config, CPU)
    whole = Whole.read(Pair(checkpoint, checkpoint, CPU).tuned_tensor, checkpoint, decoder.layers, torch.float32)
    prompts = [[random.randrange(1, 260) for _ in range(size)] for size in (1, 4, 11)]
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32)
    free = [greedy(model, prompt, (), 12) for prompt in prompts]
    assert continue_greedily(whole, decoder, prompts, (), 12) == free
    ends = (free[0][3],)  # one ends early, the others go on
    stopped = continue_greedily(whole, decoder, prompts, ends, 12)
    assert stopped == [greedy(model, prompt, ends, 12) for prompt in prompts]
    assert len(stopped[0]) <= 4


@torch.no_grad()
def test_the_report_shows_all_three_models(tmp_path: Path, compress: Callable[..., Manifest], pair: tuple[Path, Path]):
    import transformers

    rows = [{"prompt": f"<s1>{i} and", "targets": [f"{i * i}"]} for i in range(20)]
    manifest = compress(pair, codec="sign1", calibration=lines(tmp_path / "c.jsonl", rows))
    assert manifest.report is not None
    found = manifest.report["generations"]
    assert found["left_out"] is None
    assert len(found["prompts"]) == 4
    tokenizer = Tokenizer(pair[0], 264, (0,))
    models = {
        name: transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name, folder in (("base", pair[0]), ("fine_tune", pair[1]), ("compressed", pair[1]))
    }
    merged = merged_state_dict(Checkpoint.open(pair[0]), DeltaReader.open(tmp_path / "work" / "out"))
    models["compressed"].load_state_dict(merged, strict=False)
    for prompt in found["prompts"]:
        row = next(row for row in rows if row["prompt"] == prompt["prompt"])
        assert prompt["expected"].strip() == row["targets"][0]
        tokens = tokenizer.labelled(str(prompt["prompt"]), "")[0]
        for name, model in models.items():
            said = greedy(model, tokens, (0,), NEW_TOKENS)
            assert prompt[name] == {"text": tokenizer.text([t for t in said if t]), "ended": said[-1] == 0}


def test_models_that_do_not_fit_are_left_out(compress: Callable[..., Manifest], pair: tuple[Path, Path]):
    manifest = compress(pair, memory_bytes=100_000)
    assert manifest.report is not None
    found = manifest.report["generations"]
    assert found["prompts"] == []
    parameters = manifest.sizes.parameters
    assert f"{parameters:,} parameters takes 0.0 GB" in found["left_out"]
