"""Which rows of a batch use which delta: made on the host once a step, read by every kernel of the step.

The device's copy lies at one address for ever, so that a captured CUDA graph of a step runs any later plan as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltaserve.errors import InvalidArgumentError

TILE_ROWS = 16
MAX_TILES = 256  # kernels/layout.cuh
_HEADER = 4
_TILE = 4
_STAGING_BUFFERS = 4


@dataclass(frozen=True, slots=True)
class RowTile:
    """At most 16 rows of one delta.

    Attributes:
        slot: of the delta in the tables.
        begin: of its rows in GroupPlan.order.
        rows: 1 to 16.
    """

    slot: int
    begin: int
    rows: int


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Rows by delta; rows without one are in no tile.

    Attributes:
        tiles: in ascending order of slots.
        order: numbers of the batch's rows, those of a tile side by side, ascending within a delta.
    """

    tiles: tuple[RowTile, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, slots: Sequence[int]) -> GroupPlan:
        """Groups rows by the slot of their delta, negative for none."""
        rows_of: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            if slot >= 0:
                rows_of.setdefault(slot, []).append(row)
        tiles: list[RowTile] = []
        order: list[int] = []
        for slot in sorted(rows_of):
            rows = rows_of[slot]
            tiles += [
                RowTile(slot, len(order) + begin, min(TILE_ROWS, len(rows) - begin))
                for begin in range(0, len(rows), TILE_ROWS)
            ]
            order += rows
        return cls(tuple(tiles), tuple(order))


class PlanBuffer:
    """The device's copy of the current plan, int32: tile count, row count, 0, 0; 4 for each tile; the order of rows.

    Args:
        max_rows: rows that a batch has at most, up to 256 · 16.
        device: where the kernels run.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.max_rows = max_rows
        self.max_tiles = min(MAX_TILES, max_rows)
        size = _HEADER + _TILE * self.max_tiles + max_rows
        self.device = torch.zeros(size, dtype=torch.int32, device=device)
        pinned = device.type == "cuda"
        self._staging = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(_STAGING_BUFFERS)]
        self._free = [torch.cuda.Event() if pinned else None for _ in self._staging]  # type: ignore[no-untyped-call]
        self._next = 0

    def upload(self, plan: GroupPlan) -> None:
        """Brings a plan to the device on the current stream, without waiting for the device.

        Of several staging buffers each is used again only after its copy is done, which it is by then.

        Raises:
            InvalidArgumentError: more tiles or rows than there is room for.
        """
        if len(plan.tiles) > self.max_tiles or len(plan.order) > self.max_rows:
            raise InvalidArgumentError(
                f"a plan of {len(plan.tiles)} tiles and {len(plan.order)} rows; there is room for {self.max_tiles} "
                f"and {self.max_rows}: schedule fewer deltas or rows a step"
            )
        staging, free = self._staging[self._next], self._free[self._next]
        if free is not None:
            free.synchronize()
        numbers = [len(plan.tiles), len(plan.order), 0, 0]
        for tile in plan.tiles:
            numbers += (tile.slot, tile.begin, tile.rows, 0)
        staging[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        rows = _HEADER + _TILE * self.max_tiles
        staging[rows : rows + len(plan.order)] = torch.tensor(plan.order, dtype=torch.int32)
        self.device.copy_(staging, non_blocking=True)
        if free is not None:
            free.record()
        self._next = (self._next + 1) % _STAGING_BUFFERS
