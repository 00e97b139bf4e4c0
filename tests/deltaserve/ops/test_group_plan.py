"""Plans, and their copy on the device."""

from __future__ import annotations

import random

import pytest
import torch

from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.group_plan import GroupPlan, PlanBuffer, RowTile


def test_rows_lie_by_delta_in_tiles() -> None:
    plan = GroupPlan.of([4, -1, 2, 4, 2, -1, 4])
    assert plan.order == (2, 4, 0, 3, 6)
    assert plan.tiles == (RowTile(2, 0, 2), RowTile(4, 2, 3))


def test_every_row_with_a_delta_is_in_one_tile_of_its_delta() -> None:
    slots = [random.choice([-1, 0, 0, 0, *range(9)]) for _ in range(200)]
    plan = GroupPlan.of(slots)
    seen: list[int] = []
    for tile in plan.tiles:
        rows = plan.order[tile.begin : tile.begin + tile.rows]
        assert 1 <= tile.rows <= 16
        assert {slots[row] for row in rows} == {tile.slot}
        seen += rows
    assert sorted(seen) == [row for row, slot in enumerate(slots) if slot >= 0]
    full = [tile.rows for tile in plan.tiles if tile.slot == 0]
    assert all(rows == 16 for rows in full[:-1])


def test_the_device_s_copy_stays_where_it_is() -> None:
    buffer = PlanBuffer(40, torch.device("cpu"))
    address = buffer.device.data_ptr()
    for slots in ([1] * 40, [], [0, 3, -1, 0]):
        plan = GroupPlan.of(slots)
        buffer.upload(plan)
        numbers = buffer.device.tolist()
        assert numbers[:2] == [len(plan.tiles), len(plan.order)]
        tiles = [tuple(numbers[4 + 4 * i : 7 + 4 * i]) for i in range(len(plan.tiles))]
        assert tiles == [(tile.slot, tile.begin, tile.rows) for tile in plan.tiles]
        order = 4 + 4 * buffer.max_tiles
        assert numbers[order : order + len(plan.order)] == list(plan.order)
    assert buffer.device.data_ptr() == address


def test_what_there_is_no_room_for_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="fewer"):
        PlanBuffer(3, torch.device("cpu")).upload(GroupPlan.of([0, 0, 0, 0]))
