"""Which part of the model one rank of a tensor-parallel engine holds (pure).

Column-parallel: q, k, v, gate and up, by rows of their weights, so that a rank has whole heads. Row-parallel: o and
down, by columns; their outputs are summed over the ranks. Everything else every rank holds whole. Where ranks outnumber
KV heads, a KV head is held by several ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltaserve.errors import InvalidArgumentError
from services.worker.engine.config import ModelConfig

ROW_PARALLEL = ("o_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows and columns of a linear's weight [N, K], each begin … end − 1."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    row_parallel: bool  # whether outputs are partial sums, to which only the first rank adds the bias


@dataclass(frozen=True, slots=True)
class Shard:
    """A rank, and the whole model's shapes.

    Attributes:
        local: shapes of what the rank computes: its own heads, KV heads and columns of the MLP.
    """

    rank: int
    ranks: int
    whole: ModelConfig
    local: ModelConfig

    @classmethod
    def of(cls, config: ModelConfig, rank: int = 0, ranks: int = 1) -> Shard:
        """Raises InvalidArgumentError when the model cannot be divided among so many ranks."""
        heads, kv_heads = config.heads, config.kv_heads
        if heads % ranks or config.intermediate % ranks or (kv_heads % ranks and ranks % kv_heads):
            raise InvalidArgumentError(
                f"tensor_parallel is {ranks}; expected a divisor of {heads} heads and of {config.intermediate} columns "
                f"of the MLP, and a divisor or a multiple of {kv_heads} KV heads",
                field="tensor_parallel",
            )
        local = replace(
            config, heads=heads // ranks, kv_heads=max(1, kv_heads // ranks), intermediate=config.intermediate // ranks
        )
        return cls(rank, ranks, config, local)

    def slice(self, module: str) -> Slice:
        """Returns the part of a linear, named as in the checkpoint, that this rank holds."""
        projection, hidden = module.rpartition(".")[2], self.whole.hidden
        heads = self._range(self.rank, self.local.heads * self.whole.head_dim)
        columns = self._range(self.rank, self.local.intermediate)
        match projection:
            case "q_proj":
                return Slice(heads, (0, hidden), row_parallel=False)
            case "k_proj" | "v_proj":
                place = self.rank * self.whole.kv_heads // self.ranks  # of several ranks when they outnumber the heads
                first = place * self.whole.head_dim
                return Slice(
                    (first, first + self.local.kv_heads * self.whole.head_dim), (0, hidden), row_parallel=False
                )
            case "gate_proj" | "up_proj":
                return Slice(columns, (0, hidden), row_parallel=False)
            case "o_proj":
                return Slice((0, hidden), heads, row_parallel=True)
            case "down_proj":
                return Slice((0, hidden), columns, row_parallel=True)
        raise InvalidArgumentError(f"{module!r} is no linear of a decoder layer", field="module")

    @staticmethod
    def _range(rank: int, size: int) -> tuple[int, int]:
        return rank * size, (rank + 1) * size
