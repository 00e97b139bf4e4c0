"""Token sequences as right-padded batches of like lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_BATCH_TOKENS = 4096
PADDING = 0  # any token: what follows a sequence never reaches it through causal attention


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that are computed at once.

    Attributes:
        tokens: int64 [B, T], padded on the right.
        lengths: int64 [B].
        rows: numbers of the sequences, [B].
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    rows: list[int]

    @property
    def valid(self) -> torch.Tensor:
        """Bool [B, T]: which tokens are no padding."""
        return torch.arange(self.tokens.shape[1]) < self.lengths.unsqueeze(1)


def make_batches(sequences: Sequence[Sequence[int]], max_tokens: int = MAX_BATCH_TOKENS) -> list[Batch]:
    """Groups sequences by length into batches of at most `max_tokens`, padding included (or of one sequence)."""
    order = sorted(range(len(sequences)), key=lambda row: (len(sequences[row]), row))
    batches: list[Batch] = []
    rows: list[int] = []
    for row in order:
        if rows and (len(rows) + 1) * len(sequences[row]) > max_tokens:
            batches.append(_batch(sequences, rows))
            rows = []
        rows.append(row)
    return [*batches, _batch(sequences, rows)] if rows else batches


def _batch(sequences: Sequence[Sequence[int]], rows: list[int]) -> Batch:
    lengths = torch.tensor([len(sequences[row]) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), PADDING)
    for i, row in enumerate(rows):
        tokens[i, : len(sequences[row])] = torch.tensor(sequences[row])
    return Batch(tokens, lengths, rows)
