"""Whether a fine-tune writes a blank between prompt and answer: files of labelled rows rarely say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional

from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from services.compressor.pipeline.batches import make_batches
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.rows import Labelled, Row
from services.compressor.pipeline.streams import Stream
from services.compressor.pipeline.text import Tokenizer

Pairs = list[tuple[list[int], list[int]]]
"""Tokens of prompts and of answers with their end."""

_ROWS = 16
_MAX_TOKENS = 256


@torch.no_grad()
def writes_blank(pair: Pair, decoder: Decoder, tokenizer: Tokenizer, rows: Sequence[Row], scratch: Path) -> bool:
    """Tells which spelling the fine-tune finds likelier over a few labelled rows: " answer" or "answer".

    Calibrating with answers that the model never gives would fit the codes to inputs that they never meet. Takes one
    pass over the fine-tune's weights, and none when the rows leave nothing to ask.
    """
    asked = list(islice((row for row in rows if isinstance(row, Labelled)), _ROWS))
    pairs: list[Pairs] = [[], []]
    for row in asked:
        spaced, plain = (tokenizer.labelled(row.prompt, blank + row.targets[0]) for blank in (" ", ""))
        if spaced != plain and plain[0] and len(plain[0] + plain[1]) < _MAX_TOKENS:
            pairs[0].append(spaced)
            pairs[1].append(plain)
    if not pairs[0]:
        return False
    losses = _losses(pair, decoder, pairs[0] + pairs[1], scratch)
    return sum(losses[: len(pairs[0])]) < sum(losses[len(pairs[0]) :])


def _losses(pair: Pair, decoder: Decoder, pairs: Pairs, scratch: Path) -> list[float]:
    """Returns the fine-tune's negative log-likelihood of each answer after its prompt, nats."""
    batches = make_batches([prompt + answer for prompt, answer in pairs])
    stream = Stream(decoder, batches, Hidden(Memory(1 << 62), scratch, decoder.device))
    stream.begin(pair.tuned_tensor(EMBEDDING))
    for index, weights in enumerate(pair.tuned_layers(range(decoder.layers))):
        stream.advance(index, weights)
    norm = pair.tuned_tensor("model.norm.weight")
    head = pair.tuned_tensor(EMBEDDING if pair.tuned.tied else LM_HEAD)
    losses = [0.0] * len(pairs)
    for i, batch in enumerate(batches):
        for place, row in enumerate(batch.rows):
            prompt, answer = pairs[row]
            states = stream.hidden[i][place, len(prompt) - 1 : len(prompt) + len(answer) - 1]
            logits = functional.linear(decoder.final_norm(norm, states), head)
            losses[row] = float(functional.cross_entropy(logits, torch.tensor(answer).to(head.device), reduction="sum"))
    return losses
