"""The deltas of one linear by slot: a table in device memory that tells kernels where planes are and how coded.

It lies at one address for ever. A linear may be fused of several parts (query, key, value) that lie side by side in a
row of y; each part of each delta has its own codec, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.kernel_layout import BLOCK_N, KernelTensor

PART = np.dtype(
    [
        *((name, np.uint64) for name in ("codes", "scales", "column", "book", "left", "right")),
        *((name, np.int32) for name in ("bits", "zero2", "group", "groups", "rank", "factor", "begin", "n")),
        *((name, np.int32) for name in ("blocks", "chunks", "codeword", "cost", "slot_cost")),
        ("spare", np.int32, 3),
    ]
)
"""struct Part of kernels/layout.cuh."""

_FACTORS_PER_UNIT = 8  # ranks that cost about as much as a unit of codes: 32 features of two bytes each
_COST_OF_CODEWORDS = {8: 2, 12: 5, 16: 5, 24: 10}  # a unit of them in units of signs, by their width: ADR 6


@dataclass(frozen=True, slots=True)
class LinearPart:
    """Features begin … begin + n − 1 of a row of y."""

    begin: int
    n: int


class DeltaTable:
    """The deltas of one linear.

    Args:
        slots: deltas that are on the device at once.
        parts: of the linear; for an lm_head n is the largest vocabulary.
        columns: K, a multiple of 16.
        device: where the kernels run.
        max_rank: of low-rank factors that there is room for; 0: none are taken, and `shrink` is never launched.

    Attributes:
        device: uint8 [slots · parts · 112], what kernels read.
    """

    def __init__(
        self, slots: int, parts: Sequence[LinearPart], columns: int, device: torch.device, max_rank: int = 0
    ) -> None:
        self.parts = tuple(parts)
        self.columns = columns
        self.slots = slots
        self.max_rank = max_rank
        self._records = np.zeros((slots, len(self.parts)), dtype=PART)
        self._tensors: dict[tuple[int, int], KernelTensor] = {}
        self.device = torch.zeros(self._records.nbytes, dtype=torch.uint8, device=device)

    def tensor(self, slot: int, part: int = 0) -> KernelTensor | None:
        """Returns what a slot holds for a part; None for no change."""
        return self._tensors.get((slot, part))

    def set(self, slot: int, tensors: Sequence[KernelTensor | None]) -> None:
        """Puts a delta into a slot on the current stream; None where a part is the base's or is multiplied outside.

        No step that is still running may use the slot. The tensors are kept alive until the slot is set again.

        Raises:
            InvalidArgumentError: a shape that does not fit its part, or too high a rank. The slot is as before then.
        """
        if len(tensors) != len(self.parts):
            raise InvalidArgumentError(f"{len(tensors)} tensors for a linear of {len(self.parts)} parts")
        records = [self._record(part, tensor) for part, tensor in zip(self.parts, tensors, strict=True)]
        for index, tensor in enumerate(tensors):
            self._records[slot, index] = records[index]
            self._tensors.pop((slot, index), None)
            if tensor is not None:
                self._tensors[slot, index] = tensor
        row = self._records[slot]
        row["slot_cost"][0] = int((row["blocks"].astype(np.int64) * row["cost"]).sum())
        begin = slot * row.nbytes
        fresh = torch.from_numpy(row.view(np.uint8).copy())
        self.device[begin : begin + row.nbytes].copy_(fresh)

    def address(self, slot: int, part: int = 0) -> np.uint64:
        """Returns where on the device the record of a part is."""
        return np.uint64(self.device.data_ptr() + (slot * len(self.parts) + part) * PART.itemsize)

    def _record(self, part: LinearPart, tensor: KernelTensor | None) -> np.ndarray[tuple[int, ...], np.dtype[np.void]]:
        record = np.zeros((), dtype=PART)
        if tensor is None:
            return record
        n, columns = tensor.shape
        if columns != self.columns or n > part.n:
            raise InvalidArgumentError(f"a delta of {n} × {columns} for a part of {part.n} × {self.columns}")
        for name in ("codes", "scales", "column", "book", "left", "right"):
            plane = getattr(tensor, name)
            record[name] = 0 if plane is None else plane.data_ptr()
        for name in ("bits", "zero2", "group", "rank", "factor", "chunks", "codeword"):
            record[name] = getattr(tensor, name)
        if tensor.rank > self.max_rank:
            raise InvalidArgumentError(
                f"low-rank factors of rank {tensor.rank}; the table has room for {self.max_rank}"
            )
        record["groups"] = -(-columns // tensor.group) if tensor.group else 1
        record["begin"], record["n"] = part.begin, n
        record["blocks"] = -(-n // BLOCK_N)
        unit = _COST_OF_CODEWORDS.get(tensor.codeword, 1)
        record["cost"] = tensor.bits * tensor.chunks * unit + -(-tensor.rank // _FACTORS_PER_UNIT) + 1
        return record
