"""What the three models say about held-out text and labelled rows: KL, agreement, perplexity, exact match."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn import functional

from services.compressor.pipeline.samples import Answer
from services.compressor.pipeline.spread import Spread
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
    """Figures over held-out text; KL in nats a token, agreement 0 to 1.

    Attributes:
        tokens: places that are counted: those before a token that the fine-tune is asked to say.
        kl: mean over them.
        agreement: share of them where fine-tune and compressed model find the same token most probable.
        perplexity: of each model; infinite where it overflows.
        spread: of KL over places.
    """

    tokens: int
    kl: float
    agreement: float
    perplexity: dict[Model, float]
    spread: Spread = field(default_factory=Spread)


class Sums:
    """Adds up figures over places, in float64."""

    def __init__(self) -> None:
        self.agreed = 0
        self.kls: list[torch.Tensor] = []
        self.loss = dict.fromkeys(MODELS, 0.0)

    def add(self, logits: Mapping[Model, torch.Tensor], following: torch.Tensor) -> None:
        """Adds M places.

        Args:
            logits: float32 [M, V] of each model.
            following: int64 [M], the tokens that follow.
        """
        logs = {model: functional.log_softmax(values, dim=-1) for model, values in logits.items()}
        tuned, served = logs["fine_tune"], logs["compressed"]
        self.kls.append((tuned.exp() * (tuned - served)).sum(dim=-1, dtype=torch.float64).cpu())
        self.agreed += int((tuned.argmax(dim=-1) == served.argmax(dim=-1)).sum())
        for model, values in logs.items():
            picked = values.gather(1, following.unsqueeze(1))
            self.loss[model] -= float(picked.sum(dtype=torch.float64))

    def quality(self) -> Quality:
        """Returns the figures."""
        kls = torch.cat(self.kls)
        count = kls.numel()
        perplexity = {}
        for model, loss in self.loss.items():
            mean = loss / count
            perplexity[model] = math.exp(mean) if mean < 700 else math.inf
        # rounding can leave a place slightly below zero
        return Quality(count, max(0.0, float(kls.mean())), self.agreed / count, perplexity, Spread.of(kls.tolist()))


@torch.no_grad()
def measure_text(
    streams: Mapping[Model, Stream], heads: Mapping[Model, Head], asked: Sequence[Sequence[bool]]
) -> Quality:
    """Returns the figures over the batches that all three streams have gone through.

    Args:
        streams: after the last layer, over the same batches.
        heads: of each model.
        asked: for each token of each sequence, whether the place before it counts; at least one does.
    """
    sums = Sums()
    for i, batch in enumerate(streams["fine_tune"].batches):
        counts = torch.zeros_like(batch.tokens, dtype=torch.bool)
        for place, row in enumerate(batch.rows):
            counts[place, : len(asked[row]) - 1] = torch.tensor(asked[row][1:])
        for logits, after in _chunks(streams, heads, i, counts, batch.tokens.roll(-1, dims=1)):
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

    Teacher-forced: with prompt and answer given, the greedy continuation of the prompt is these very tokens if and only
    if the most probable token is the right one at every place, and after the last one it is an end. A row counts when
    this holds for any of its answers. A model that writes the right text in another split into tokens is counted as
    wrong, so shares are somewhat too low, for all models alike.
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
