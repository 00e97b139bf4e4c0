"""How near merged weights are to the fine-tune, with whole models of `transformers`: an oracle for every method.

Nothing of the compressor or the worker computes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from benchmarks.compression_methods.case import StateDict
from benchmarks.compression_methods.data import Data, LabelledRow
from benchmarks.compression_methods.models import batches, build, padded

NEW_TOKENS = 40
_CHUNK_LOGITS = 1 << 25  # elements


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        kl: from the fine-tune, nats a token, over the answers' tokens (the end included) of the test rows.
        agreement: share of these tokens at which both models find the same one most probable.
        right: for each test row, whether its greedy continuation is one of its targets.
    """

    kl: float
    agreement: float
    right: list[bool]

    @property
    def accuracy(self) -> float:
        """Share of test rows that are right."""
        return sum(self.right) / len(self.right)


def gained(right: Sequence[bool], reference: Sequence[bool]) -> tuple[float, float]:
    """Returns how much more of the same rows are right than of a reference, and its standard error, shares of one.

    Rows that both get right or both get wrong say nothing, so the error is far smaller than that of either accuracy.
    """
    differences = torch.tensor(right, dtype=torch.float64) - torch.tensor(reference, dtype=torch.float64)
    return float(differences.mean()), float(differences.std(correction=0)) / len(right) ** 0.5


@torch.no_grad()
def evaluate(config: Any, tuned: StateDict, merged: StateDict, data: Data, device: str) -> Figures:
    """Measures merged weights against the fine-tune's.

    Args:
        config: of `transformers`.
        tuned: float32 weights of the fine-tune.
        merged: float32 weights of base plus decoded delta.
        data: what to measure over.
        device: torch device.
    """
    reference, model = build(config, tuned, device), build(config, merged, device)
    kl = agreed = tokens = 0.0
    for batch in _chunks(data.rows, int(config.vocab_size)):
        ours, theirs = _answer_logits(model, batch, device), _answer_logits(reference, batch, device)
        log_ours, log_theirs = functional.log_softmax(ours, -1), functional.log_softmax(theirs, -1)
        kl += float((log_theirs.exp() * (log_theirs - log_ours)).sum(dtype=torch.float64))
        agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        tokens += len(ours)
    return Figures(max(0.0, kl / tokens), agreed / tokens, answered_right(model, data, device))


@torch.no_grad()
def answered_right(model: Any, data: Data, device: str) -> list[bool]:
    """Tells for each row whether its greedy continuation, blanks around it aside, is one of its targets.

    Not teacher-forced: models write some answers in other tokens than the tokenizer would.
    """
    right = [False] * len(data.rows)
    prompts = [row.prompt for row in data.rows]
    for numbers in batches(prompts, max_tokens=1 << (13 if device == "cpu" else 15)):
        reversed_tokens, valid = padded([prompts[number][::-1] for number in numbers], device)
        out = model.generate(
            reversed_tokens.flip(1),  # padding on the left
            attention_mask=valid.flip(1).long(),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(data.ends),
            pad_token_id=data.ends[0],
        )
        for number, said in zip(numbers, out[:, reversed_tokens.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(said) if token in data.ends), len(said))
            right[number] = data.text(said[:end]).strip() in data.rows[number].targets
    return right


def _chunks(rows: Sequence[LabelledRow], vocabulary: int) -> Iterator[list[LabelledRow]]:
    """Yields rows in batches that are small enough for their logits, too."""
    for numbers in batches([row.prompt + row.answer for row in rows]):
        step = max(1, _CHUNK_LOGITS // (vocabulary * max(len(rows[number].answer) for number in numbers)))
        for begin in range(0, len(numbers), step):
            yield [rows[number] for number in numbers[begin : begin + step]]


def _answer_logits(model: Any, rows: Sequence[LabelledRow], device: str) -> torch.Tensor:
    """Returns float32 [M, V]: what a model says at every token of the rows' answers, each row's in order."""
    tokens, _ = padded([row.prompt + row.answer for row in rows], device)
    at = torch.arange(tokens.shape[1])
    asked = [(at >= len(r.prompt) - 1) & (at < len(r.prompt) + len(r.answer) - 1) for r in rows]
    hidden = model.model(tokens, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden[torch.stack(asked).to(device)])
    return logits
