"""Chooses next tokens from logits, all rows at once, on the device that holds them.

Order: repetition, presence and frequency penalties, logit_bias, grammar, minimum length, temperature, top_k, top_p,
min_p, draw.
Where tokens tie at the edge of top_k or top_p all of them are kept, so that no choice depends on the order of a sort.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from services.worker.engine.masks import forbidden_tokens
from services.worker.engine.noise import gumbel
from services.worker.engine.sequence import Sequence as EngineSequence
from services.worker.messages import Logprobs, Sampling

NUCLEUS_FIRST_TRY = 256  # tokens looked at before a row's whole vocabulary is sorted for top_p

_INF = float("inf")


@dataclass(frozen=True, slots=True)
class Choice:
    """A row's outcome: the token, or None when the logits were not finite; logprobs when asked for."""

    token: int | None
    logprobs: Logprobs | None = None


def sample(logits: torch.Tensor, sequences: Sequence[EngineSequence]) -> list[Choice]:
    """Chooses the next token of every sequence.

    Args:
        logits: [S, vocab] float32 of the S sequences, −inf beyond a model's own vocabulary; changed in place.
        sequences: what the rows belong to.

    Returns:
        One choice a row.
    """
    # first, on the CPU: on a GPU the logits are still being computed
    constrained = [row for row, sequence in enumerate(sequences) if sequence.constraint is not None]
    masks = [sequence.constraint.mask() for sequence in sequences if sequence.constraint is not None]
    raw = logits.clone() if any(s.sampling.top_logprobs is not None for s in sequences) else logits
    _penalise(logits, sequences)
    _bias(logits, sequences)
    if constrained:
        _forbid(logits, constrained, forbidden_tokens(masks, logits.shape[1], logits.device))
    _hold_back_stops(logits, sequences)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
    scores = _draw_scores(logits, sequences, drawn) if drawn else logits
    best, tokens = scores.max(dim=1)
    finite = (best > -_INF) & (best < _INF)  # false for NaN too
    chosen = [t if ok else None for t, ok in zip(tokens.tolist(), finite.tolist(), strict=True)]
    if raw is logits:
        return [Choice(token) for token in chosen]
    return _with_logprobs(raw, sequences, chosen)


def _rows(sequences: Sequence[EngineSequence], wanted: Callable[[Sampling], bool]) -> list[int]:
    return [row for row, sequence in enumerate(sequences) if wanted(sequence.sampling)]


def _penalise(logits: torch.Tensor, sequences: Sequence[EngineSequence]) -> None:
    for row in _rows(sequences, lambda p: p.repetition_penalty != 1):
        seen = torch.unique(torch.tensor(sequences[row].tokens, device=logits.device))
        values = logits[row, seen]
        penalty = sequences[row].sampling.repetition_penalty
        logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
    for row in _rows(sequences, lambda p: p.presence_penalty != 0 or p.frequency_penalty != 0):
        sequence = sequences[row]
        output = torch.tensor(sequence.tokens[sequence.prompt_length :], dtype=torch.int64, device=logits.device)
        seen, counts = torch.unique(output, return_counts=True)
        parameters = sequence.sampling
        logits[row, seen] -= parameters.presence_penalty + parameters.frequency_penalty * counts


def _bias(logits: torch.Tensor, sequences: Sequence[EngineSequence]) -> None:
    for row in _rows(sequences, lambda p: bool(p.logit_bias)):
        bias = {t: b for t, b in sequences[row].sampling.logit_bias.items() if t < logits.shape[1]}
        logits[row, list(bias)] += torch.tensor(list(bias.values()), device=logits.device)


def _forbid(logits: torch.Tensor, rows: list[int], forbidden: torch.Tensor) -> None:
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, -_INF)
    elif logits.device.type == "cpu":
        for row, tokens in zip(rows, forbidden, strict=True):
            logits[row].masked_fill_(tokens, -_INF)  # in place: a copy of the rows costs more than the calls
    else:
        logits[rows] = logits[rows].masked_fill_(forbidden, -_INF)


def _hold_back_stops(logits: torch.Tensor, sequences: Sequence[EngineSequence]) -> None:
    for row, sequence in enumerate(sequences):
        if sequence.generated < sequence.sampling.min_tokens:
            logits[row, [t for t in sequence.stop_tokens if t < logits.shape[1]]] = -_INF


def _draw_scores(logits: torch.Tensor, sequences: Sequence[EngineSequence], drawn: list[int]) -> torch.Tensor:
    """Returns logits whose rows of `drawn` are scaled, cut and joined with noise: their argmax is the draw."""
    chosen = [sequences[row] for row in drawn]
    subset = logits if len(drawn) == len(sequences) else logits[drawn]
    highest = subset.amax(1, keepdim=True)  # subtracted, so that the coldest temperature cannot overflow
    subset = (subset - highest) / _column([s.sampling.temperature for s in chosen], logits)
    _cut_top_k(subset, chosen)
    _cut_top_p(subset, chosen)
    _cut_min_p(subset, chosen)
    subset += gumbel([s.sampling.seed for s in chosen], [len(s.tokens) for s in chosen], logits.shape[1], logits.device)
    if len(drawn) == len(sequences):
        return subset
    logits[drawn] = subset
    return logits


def _cut_top_k(logits: torch.Tensor, sequences: Sequence[EngineSequence]) -> None:
    rows = _rows(sequences, lambda p: 0 < p.top_k < logits.shape[1])
    if not rows:
        return
    counts = torch.tensor([sequences[row].sampling.top_k for row in rows], device=logits.device)
    top = logits[rows].topk(int(counts.max()), dim=1).values
    _cut_below(logits, rows, top.gather(1, counts[:, None] - 1))


def _cut_top_p(logits: torch.Tensor, sequences: Sequence[EngineSequence]) -> None:
    rows = _rows(sequences, lambda p: p.top_p < 1)
    width = min(NUCLEUS_FIRST_TRY, logits.shape[1])
    while rows:
        top = logits[rows].topk(width, dim=1).values
        total = logits[rows].logsumexp(dim=1, keepdim=True)
        reached = (top - total).exp().cumsum(1)
        wanted = _column([sequences[row].sampling.top_p for row in rows], logits)
        place = (reached < wanted).sum(1, keepdim=True)  # index of the token that reaches top_p
        inside = (place[:, 0] < width) | (width == logits.shape[1])
        limit = top.gather(1, place.clamp(max=width - 1))
        done = inside.nonzero()[:, 0].tolist()
        _cut_below(logits, [rows[i] for i in done], limit[inside])
        rows = [rows[i] for i in (~inside).nonzero()[:, 0].tolist()]
        width = logits.shape[1]


def _cut_min_p(logits: torch.Tensor, sequences: Sequence[EngineSequence]) -> None:
    rows = _rows(sequences, lambda p: p.min_p > 0)
    if rows:
        share = _column([sequences[row].sampling.min_p for row in rows], logits)
        _cut_below(logits, rows, logits[rows].amax(1, keepdim=True) + share.log())


def _cut_below(logits: torch.Tensor, rows: list[int], limit: torch.Tensor) -> None:
    subset = logits[rows]
    logits[rows] = subset.masked_fill_(subset < limit, -_INF)


def _with_logprobs(
    raw: torch.Tensor, sequences: Sequence[EngineSequence], chosen: Sequence[int | None]
) -> list[Choice]:
    choices = []
    for row, (sequence, token) in enumerate(zip(sequences, chosen, strict=True)):
        parameters = sequence.sampling
        if token is None or parameters.top_logprobs is None:
            choices.append(Choice(token))
            continue
        values = raw[row] if parameters.raw_logits else raw[row].log_softmax(0)
        top = values.topk(min(parameters.top_logprobs, int((values > -_INF).sum())))
        choices.append(Choice(token, Logprobs(float(values[token]), top.indices.tolist(), top.values.tolist())))
    return choices


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
