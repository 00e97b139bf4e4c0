"""The table that kernels read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.delta_table import PART, DeltaTable, LinearPart
from deltaserve.ops.kernel_layout import to_kernel_layout

from .kernel_cases import coded

PARTS = [LinearPart(0, 64), LinearPart(64, 33)]


def records(table: DeltaTable) -> np.ndarray:
    return table.device.numpy().view(PART).reshape(table.slots, -1)


def test_a_slot_is_written_where_it_lies_and_emptied_again() -> None:
    table = DeltaTable(3, PARTS, 256, torch.device("cpu"), max_rank=5)
    address = table.device.data_ptr()
    first, second = (
        to_kernel_layout(coded(kind, n, 256)) for kind, n in (("int2, groups of 128", 64), ("lowrank", 33))
    )
    table.set(1, [first, second])
    assert first.codes is not None
    left, right = records(table)[1]
    assert (left["codes"], left["bits"], left["groups"], left["blocks"]) == (first.codes.data_ptr(), 2, 2, 2)
    assert (right["bits"], right["rank"], right["begin"], right["n"], right["blocks"]) == (0, 5, 64, 33, 2)
    assert left["slot_cost"] == 2 * left["cost"] + 2 * right["cost"]
    assert table.address(1, 1) == address + 3 * PART.itemsize
    table.set(1, [None, second])
    assert records(table)[1][0]["blocks"] == 0
    assert table.tensor(1, 0) is None
    assert table.tensor(1, 1) is second
    assert not records(table)[[0, 2]].view(np.uint8).any()


def test_codewords_have_their_book_and_chunks_of_their_own() -> None:
    table = DeltaTable(1, PARTS, 272, torch.device("cpu"))
    words, signs = to_kernel_layout(coded("vector12", 64, 272)), to_kernel_layout(coded("sign1", 33, 272))
    table.set(0, [words, signs])
    assert words.book is not None
    left, right = records(table)[0]
    assert (left["bits"], left["codeword"], left["chunks"], left["book"]) == (1, 12, 2, words.book.data_ptr())
    assert (right["bits"], right["codeword"], right["chunks"], right["book"]) == (1, 0, 3, 0)
    assert left["cost"] > right["cost"]


def test_shapes_that_do_not_fit_are_refused() -> None:
    table = DeltaTable(1, PARTS, 256, torch.device("cpu"))
    fits = to_kernel_layout(coded("sign1", 33, 256))
    with pytest.raises(InvalidArgumentError, match="2 parts"):
        table.set(0, [fits])
    with pytest.raises(InvalidArgumentError, match="33 × 128"):
        table.set(0, [to_kernel_layout(coded("sign1", 33, 128)), None])
    with pytest.raises(InvalidArgumentError, match="room for 0"):
        table.set(0, [None, to_kernel_layout(coded("lowrank", 33, 256))])
    with pytest.raises(InvalidArgumentError, match="64 × 256"):
        table.set(0, [None, to_kernel_layout(coded("sign1", 64, 256))])
