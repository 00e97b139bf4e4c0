"""What the three models say about held-out text and labelled rows: KL, agreement, perplexity, exact match."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from services.compressor.pipeline.samples import Answer
from services.compressor.pipeline.streams import Stream

Model = Literal["base", "fine_tune", "compressed"]
MODELS: tuple[Model, ...] = ("base", "fine_tune", "compressed")

_LOGITS = 1 << 24  # elements of one model's logits at a time


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a model: norm weight [H] and lm_head [V, H], float32."""

    norm: torch.Tensor
    matrix: torch.Tensor

    def logits(self, stream: Stream, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits [M, V] of hidden states [M, H] after the last layer."""
        return functional.linear(stream.decoder.final_norm(self.norm, hidden), self.matrix)


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures over held-out text; KL in nats a token, agreement 0 to 1."""

    tokens: int
    kl: float
    agreement: float
    perplexity: dict[Model, float]


class Sums:
    """Adds up figures over tokens, in float64."""

    def __init__(self) -> None:
        self.tokens = self.predicted = 0
        self.kl = self.agreed = 0.0
        self.loss = dict.fromkeys(MODELS, 0.0)

    def add(self, logits: Mapping[Model, torch.Tensor], following: torch.Tensor) -> None:
        """Adds M tokens.

        Args:
            logits: float32 [M, V] of each model.
            following: int64 [M], the tokens that follow; -1 at the ends of sequences.
        """
        logs = {model: functional.log_softmax(values, dim=-1) for model, values in logits.items()}
        tuned, served = logs["fine_tune"], logs["compressed"]
        self.kl += float((tuned.exp() * (tuned - served)).sum(dtype=torch.float64))
        self.agreed += int((tuned.argmax(dim=-1) == served.argmax(dim=-1)).sum())
        self.tokens += following.numel()
        known = following >= 0
        self.predicted += int(known.sum())
        for model, values in logs.items():
            picked = values[known].gather(1, following[known].unsqueeze(1))
            self.loss[model] -= float(picked.sum(dtype=torch.float64))

    def quality(self) -> Quality:
        """Returns the figures; perplexity is infinite where it overflows."""
        perplexity = {}
        for model, loss in self.loss.items():
            mean = loss / self.predicted
            perplexity[model] = math.exp(mean) if mean < 700 else math.inf
        return Quality(self.tokens, max(0.0, self.kl / self.tokens), self.agreed / self.tokens, perplexity)


@torch.no_grad()
def measure_text(streams: Mapping[Model, Stream], heads: Mapping[Model, Head]) -> Quality:
    """Returns the figures over the batches that all three streams have gone through."""
    sums = Sums()
    for i, batch in enumerate(streams["fine_tune"].batches):
        following = torch.full_like(batch.tokens, -1)
        following[:, :-1] = torch.where(batch.valid[:, 1:], batch.tokens[:, 1:], -1)
        for logits, after in _chunks(streams, heads, i, batch.valid, following):
            sums.add(logits, after)
    return sums.quality()


@torch.no_grad()
def measure_answers(
    streams: Mapping[Model, Stream],
    heads: Mapping[Model, Head],
    answers: Sequence[Answer],
    rows: int,
    ends: Sequence[int],
) -> dict[Model, float]:
    """Returns each model's share of rows (0 to 1) that it answers exactly.

    Teacher-forced: with prompt and answer given, the greedy continuation of the prompt is the answer if and only if the
    most probable token is the right one at every place, and after the last one it is an end. A row counts when this
    holds for any of its answers.
    """
    right: dict[Model, set[int]] = {model: set() for model in MODELS}
    for i, batch in enumerate(streams["fine_tune"].batches):
        chosen = [answers[row] for row in batch.rows]
        asked = _asked(chosen, batch.tokens.shape[1])
        owners = asked.nonzero()[:, 0]
        following = torch.where(asked, batch.tokens.roll(-1, dims=1), -1)
        hits: dict[Model, list[torch.Tensor]] = {model: [] for model in MODELS}
        for logits, after in _chunks(streams, heads, i, asked, following):
            for model, values in logits.items():
                hits[model].append(_hits(values.argmax(dim=-1), after, ends))
        for model, found in hits.items():
            wrong = set(owners[~torch.cat(found).cpu()].tolist())
            right[model].update(answer.row for k, answer in enumerate(chosen) if k not in wrong)
    return {model: len(found) / rows for model, found in right.items()}


def _asked(answers: Sequence[Answer], length: int) -> torch.Tensor:
    """Bool [B, T]: the places whose next token belongs to the answer or ends it."""
    at = torch.arange(length)
    return torch.stack([(at >= a.prompt - 1) & (at < len(a.tokens) - 1) for a in answers])


def _hits(said: torch.Tensor, expected: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """Bool [M]: the right token, or where an end is expected, any end."""
    ends_here = torch.isin(expected, torch.tensor(ends, device=expected.device))
    ended = torch.isin(said, torch.tensor(ends, device=said.device))
    return (said == expected) | (ends_here & ended)


def _chunks(
    streams: Mapping[Model, Stream],
    heads: Mapping[Model, Head],
    batch: int,
    picked: torch.Tensor,
    following: torch.Tensor,
) -> Iterator[tuple[dict[Model, torch.Tensor], torch.Tensor]]:
    """Yields logits of every model and what follows, over the picked places [B, T] in order, a few at a time."""
    device = heads["base"].matrix.device
    chosen = {model: streams[model].hidden[batch][picked.to(device)] for model in MODELS}
    after = following[picked].to(device)
    size = max(1, _LOGITS // heads["base"].matrix.shape[0])
    for begin in range(0, after.numel(), size):
        part = slice(begin, begin + size)
        yield {m: heads[m].logits(streams[m], chosen[m][part]) for m in MODELS}, after[part]
