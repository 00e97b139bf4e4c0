"""Rows of packed embeddings."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.ops.delta_rows import delta_rows

NAME = "model.embed_tokens.weight"


@pytest.mark.parametrize("codec", ["sign1", "int2", "int3", "int4"])
@pytest.mark.parametrize("ids", [[], [0], [4, 4, 0, 30], list(range(31))])
def test_returns_the_decoded_rows(codec: str, ids: list[int]) -> None:
    operand = code_delta(NAME, torch.randn(31, 21), torch.bfloat16, codec, base=NAME)
    wanted = torch.tensor(ids, dtype=torch.int64)
    expected = operand.decode()[wanted]
    assert torch.equal(delta_rows(operand, wanted), expected)
    assert torch.equal(delta_rows(operand.decode(), wanted), expected)


def test_what_is_stored_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="stored whole"):
        delta_rows(code_dense(NAME, torch.zeros(4, 4)), torch.tensor([0]))
