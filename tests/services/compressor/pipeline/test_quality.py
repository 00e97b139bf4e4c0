import math
import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING
from services.compressor.pipeline.batches import make_batches
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.quality import MODELS, Head, Model, measure_answers, measure_text
from services.compressor.pipeline.samples import Answer
from services.compressor.pipeline.streams import Stream

CPU = torch.device("cpu")


def streams_over(folders: dict[Model, Path], sequences: list[list[int]], scratch: Path):
    streams, heads = {}, {}
    for model, folder in folders.items():
        checkpoint = Checkpoint.open(folder)
        pair = Pair(checkpoint, checkpoint, CPU)
        decoder = Decoder(checkpoint.config, CPU)
        stream = Stream(decoder, make_batches(sequences, 40), Hidden(Memory(1 << 30), scratch, CPU))
        stream.begin(pair.tuned_tensor(EMBEDDING))
        for index in range(decoder.layers):
            stream.advance(index, pair.tuned_layer(index))
        streams[model] = stream
        heads[model] = Head(pair.tuned_tensor("model.norm.weight"), pair.tuned_tensor(EMBEDDING))
    return streams, heads


@torch.no_grad()
def test_figures_are_those_of_whole_models(pair: tuple[Path, Path], tmp_path: Path):
    """Only places before tokens that are asked for count."""
    import transformers

    sequences = [[(11 * i + n) % 250 for i in range(n)] for n in (2, 7, 25, 26)]
    asked = [[random.random() < 0.6 for _ in sequence] for sequence in sequences]
    asked[0] = [True, False]  # no place comes before a first token
    asked[3][-1] = True
    folders: dict[Model, Path] = {"base": pair[0], "fine_tune": pair[1], "compressed": pair[0]}
    quality = measure_text(*streams_over(folders, sequences, tmp_path), asked)
    whole = [transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in pair]
    kls, agreed, losses = [], 0, []
    for sequence, wanted in zip(sequences, asked, strict=True):
        tokens, counts = torch.tensor(sequence), torch.tensor(wanted[1:])
        base, tuned = (model(tokens.unsqueeze(0)).logits[0, :-1][counts].log_softmax(-1) for model in whole)
        kls += functional.kl_div(base, tuned, log_target=True, reduction="none").sum(-1).tolist()
        agreed += int((base.argmax(-1) == tuned.argmax(-1)).sum())
        losses += functional.nll_loss(tuned, tokens[1:][counts], reduction="none").tolist()
    count = sum(map(sum, (wanted[1:] for wanted in asked)))
    assert quality.tokens == len(kls) == count
    assert math.isclose(quality.kl, sum(kls) / count, rel_tol=1e-4)
    assert quality.spread.p50 == pytest.approx(sorted(kls)[math.ceil(count / 2) - 1], rel=1e-3)
    assert sum(quality.spread.counts) == count
    assert quality.agreement == agreed / count < 1
    assert math.isclose(quality.perplexity["fine_tune"], math.exp(sum(losses) / count), rel_tol=1e-4)
    assert quality.perplexity["compressed"] == quality.perplexity["base"] != quality.perplexity["fine_tune"]


@torch.no_grad()
def test_exact_match_is_what_greedy_generation_gives(pair: tuple[Path, Path], tmp_path: Path):
    import transformers

    whole = transformers.LlamaForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    answers, expected = [], 0
    for row in range(12):
        prompt = [(17 * row + i) % 250 + 8 for i in range(5)]
        greedy = list(prompt)  # by hand: generate() would stop at the end-of-sequence token
        for _ in range(4):
            greedy.append(int(whole(torch.tensor([greedy])).logits[0, -1].argmax()))
        said, tail = greedy[5:8], greedy[8]
        right = row % 3 != 0
        answers.append(Answer(row, 5, [*prompt, *([9, 9, 9] if right else [7] * 3), 0]))  # a wrong answer first
        answers.append(Answer(row, 5, [*prompt, *(said if right else [7, *said[1:]]), tail]))
        expected += right
    ends = sorted({answer.tokens[-1] for answer in answers})
    folders: dict[Model, Path] = dict.fromkeys(MODELS, pair[1])
    streams, heads = streams_over(folders, [answer.tokens for answer in answers], tmp_path)
    accuracy = measure_answers(streams, heads, answers, 12, ends)
    assert accuracy == dict.fromkeys(MODELS, expected / 12)
