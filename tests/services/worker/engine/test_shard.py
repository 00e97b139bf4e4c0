"""Every rank's slices together are the whole model, with whole heads, once each (KV heads perhaps more than once)."""

from __future__ import annotations

import pytest

from deltaserve.errors import InvalidArgumentError
from services.worker.engine.config import ModelConfig
from services.worker.engine.shard import Shard


def config(heads: int, kv_heads: int, intermediate: int = 96) -> ModelConfig:
    return ModelConfig(
        vocab=50, hidden=64, intermediate=intermediate, layers=2, heads=heads, kv_heads=kv_heads, head_dim=8,
        norm_eps=1e-5, context=128, windows=(0, 0), source=None,
    )  # fmt: skip


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(8, 8, 4), (8, 4, 2), (8, 2, 8), (12, 4, 4), (8, 1, 4)])
def test_slices_cover_the_whole_and_query_heads_find_their_kv_head(heads, kv_heads, ranks):
    whole = config(heads, kv_heads)
    shards = [Shard.of(whole, rank, ranks) for rank in range(ranks)]
    for module, size in (("q_proj", heads * 8), ("gate_proj", 96), ("up_proj", 96)):
        rows = [range(*s.slice(f"model.layers.0.x.{module}").rows) for s in shards]
        assert [row for part in rows for row in part] == list(range(size))
    for module, size in (("o_proj", heads * 8), ("down_proj", 96)):
        parts = [s.slice(f"model.layers.0.x.{module}") for s in shards]
        assert [column for part in parts for column in range(*part.columns)] == list(range(size))
        assert all(part.rows == (0, 64) and part.row_parallel for part in parts)
    for shard in shards:
        queries, keys = shard.slice("q_proj").rows, shard.slice("k_proj").rows
        assert shard.slice("v_proj").rows == keys
        assert (keys[1] - keys[0]) // 8 == shard.local.kv_heads
        shared = shard.local.heads // shard.local.kv_heads
        for head in range(shard.local.heads):
            of_the_whole = (queries[0] // 8 + head) // (heads // kv_heads)
            assert of_the_whole == keys[0] // 8 + head // shared


@pytest.mark.parametrize(("heads", "kv_heads", "wide", "ranks"), [(8, 8, 96, 3), (12, 4, 96, 6), (8, 8, 92, 8)])
def test_what_cannot_be_divided_is_refused_with_numbers(heads, kv_heads, wide, ranks):
    with pytest.raises(InvalidArgumentError, match=f"tensor_parallel is {ranks}; expected a divisor of {heads} heads"):
        Shard.of(config(heads, kv_heads, wide), 0, ranks)
