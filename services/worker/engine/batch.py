"""The plan of a step as index tensors, built on the host once per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from services.worker.engine.blocks import NULL_BLOCK
from services.worker.engine.deltas import DeltaRows, DeltaWeights, RowOwners
from services.worker.engine.plan import Chunk

MIN_DECODE_WIDTH = 8  # blocks: shorter sequences share one padded attention call

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows with one token each, of sequences of like length.

    Attributes:
        rows: [B] rows of the batch; a slice when they lie side by side, which spares copies.
        blocks: [B, W] block tables, padded with NULL_BLOCK.
        lengths: [B] tokens of each sequence, this one included.
    """

    rows: torch.Tensor | slice
    blocks: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """Rows begin … end − 1 are tokens start … of one sequence whose block table is `blocks` [W]."""

    begin: int
    end: int
    start: int
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. T rows (tokens) of which S are followed by a sampled token; integers are int64.

    Attributes:
        chunks: in the order of their rows, those of one model side by side.
        tokens, positions: [T] token ids and their places in their sequences.
        slots: [T] where keys and values go: block · block_size + offset.
        owners: which of the T rows belong to which model.
        sampled: [S] rows that are sampled from.
        sampled_owners: which of the S rows belong to which model.
        decode, prefill: the rows again, as attention sees them.
        fresh_blocks: blocks that this step begins to fill and leaves partly empty.
    """

    chunks: Sequence[Chunk]
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    owners: RowOwners
    sampled: torch.Tensor
    sampled_owners: RowOwners
    decode: tuple[DecodeRows, ...]
    prefill: tuple[PrefillRows, ...]
    fresh_blocks: torch.Tensor

    @property
    def sampling_chunks(self) -> list[Chunk]:
        """The chunks that the S sampled rows belong to, in their order."""
        return [chunk for chunk in self.chunks if chunk.samples]


def build_batch(
    chunks: Sequence[Chunk], deltas: Mapping[str, DeltaWeights], block_size: int, device: torch.device
) -> Batch:
    """Builds the index tensors of a step from at least one chunk; `deltas` holds every delta of the chunks."""
    ordered = sorted(chunks, key=lambda c: c.sequence.revision)
    lengths = np.array([c.length for c in ordered])
    starts = np.array([c.start for c in ordered])
    ends = lengths.cumsum()
    tables = _tables(ordered)
    owner = np.repeat(np.arange(len(ordered)), lengths)
    positions = np.arange(ends[-1]) - (ends - lengths - starts)[owner]
    slots = tables[owner, positions // block_size] * block_size + positions % block_size
    tokens: list[int] = []
    for chunk in ordered:
        tokens += chunk.tokens
    samples = np.array([c.samples for c in ordered])
    rows = _RowTables(tables, starts, lengths, ends, -(-(starts + lengths) // block_size), device)
    return Batch(
        chunks=ordered,
        tokens=_tensor(np.array(tokens), device),
        positions=_tensor(positions, device),
        slots=_tensor(slots, device),
        owners=_owners(ordered, lengths, deltas),
        sampled=_tensor(ends[samples] - 1, device),
        sampled_owners=_owners(ordered, samples.astype(np.int64), deltas),
        decode=rows.decode(),
        prefill=rows.prefill(),
        fresh_blocks=_tensor(_fresh_blocks(tables, starts, starts + lengths, block_size), device),
    )


@dataclass(frozen=True, slots=True)
class _RowTables:
    """Attention's view of the chunks: block tables [C, W], and [C] first position, rows, end row, blocks in use."""

    tables: Ints
    starts: Ints
    lengths: Ints
    ends: Ints
    widths: Ints
    device: torch.device

    def decode(self) -> tuple[DecodeRows, ...]:
        """Groups single rows by length, so that padding at most doubles what attention reads."""
        buckets: dict[int, list[int]] = {}
        for index in np.flatnonzero(self.lengths == 1).tolist():
            buckets.setdefault(max(MIN_DECODE_WIDTH, int(self.widths[index]) - 1).bit_length(), []).append(index)
        groups = []
        for members in buckets.values():
            width = int(self.widths[members].max())
            groups.append(
                DecodeRows(
                    rows=_rows(self.ends[members] - 1, self.device),
                    blocks=_tensor(self.tables[members, :width], self.device),
                    lengths=_tensor(self.starts[members] + 1, self.device),
                )
            )
        return tuple(groups)

    def prefill(self) -> tuple[PrefillRows, ...]:
        """Returns the chunks of more than one row."""
        return tuple(
            PrefillRows(
                begin=int(self.ends[index] - self.lengths[index]),
                end=int(self.ends[index]),
                start=int(self.starts[index]),
                blocks=_tensor(self.tables[index, : self.widths[index]], self.device),
            )
            for index in np.flatnonzero(self.lengths > 1).tolist()
        )


def _rows(rows: Ints, device: torch.device) -> torch.Tensor | slice:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else _tensor(rows, device)


def _tables(chunks: Sequence[Chunk]) -> Ints:
    """Returns the block tables [C, W] of the chunks' sequences, padded with NULL_BLOCK."""
    tables = np.full((len(chunks), max(len(c.sequence.blocks) for c in chunks)), NULL_BLOCK, dtype=np.int64)
    for row, chunk in zip(tables, chunks, strict=True):
        row[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return tables


def _owners(chunks: Sequence[Chunk], rows: Ints, deltas: Mapping[str, DeltaWeights]) -> RowOwners:
    """Returns whose the rows are, where chunk i has rows[i] of them."""
    found: list[DeltaRows] = []
    begin = 0
    for revision, group in groupby(zip(chunks, rows.tolist(), strict=True), key=lambda pair: pair[0].sequence.revision):
        end = begin + sum(count for _, count in group)
        if revision and end > begin:
            found.append(DeltaRows(begin, end, deltas[revision]))
        begin = end
    return RowOwners.of(found, begin)


def _fresh_blocks(tables: Ints, starts: Ints, ends: Ints, block_size: int) -> Ints:
    """Returns the blocks of last tokens that these chunks are the first to write to and do not fill."""
    last = (ends - 1) // block_size
    fresh = (last * block_size >= starts) & (ends % block_size != 0)
    blocks: Ints = tables[np.arange(len(tables)), last][fresh]
    return blocks


def _tensor(values: Ints, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
