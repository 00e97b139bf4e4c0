"""The Llama family (Llama, Mistral, Qwen2, Qwen3) on a flat batch of rows that belong to the base and to many deltas.

Every linear is one GEMM with the base's weights for all rows of base and packed deltas, plus each row's own delta; rows
of hot deltas have merged weights of their own. Nothing here knows where a sequence begins or ends: that is attention's
business.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import embedding, rms_norm, silu

from deltaserve.ops.delta_rows import delta_rows
from services.worker.engine.attention import Attention
from services.worker.engine.batch import Batch
from services.worker.engine.config import ModelConfig
from services.worker.engine.deltas import DeltaWeights, RowOwners, apply_linear, apply_lm_head
from services.worker.engine.rope import Rope
from services.worker.engine.weights import BaseWeights, Layer, Norm

AddUp = Callable[[torch.Tensor], None]


class LlamaModel:
    """Base weights and the forward pass over them and the deltas of a batch."""

    def __init__(self, config: ModelConfig, weights: BaseWeights, add_up: AddUp | None = None) -> None:
        """Prepares only.

        Args:
            config: shapes of what is computed here.
            weights: of the base, as far as they are held here.
            add_up: replaces a tensor by its sum over all ranks; None: this one holds everything.
        """
        self.config = config
        self.weights = weights
        self._add_up = add_up
        self._rope = Rope(config, weights.embedding.device)

    def forward(self, batch: Batch, attention: Attention) -> torch.Tensor:
        """Computes one step.

        Returns:
            Logits [S, vocab], float32, of the rows that are sampled from; vocab is the largest of the models in the
            batch, and a row is −inf beyond its own model's.
        """
        return self._logits(self.hidden(batch, attention), batch)

    def hidden(self, batch: Batch, attention: Attention) -> torch.Tensor:
        """Computes a step up to the last layer: hidden states [T, hidden], before the final norm."""
        attention.begin(batch)
        hidden = self._embed(batch.tokens, batch.owners)
        angles = self._rope.angles(batch.positions, hidden.dtype)
        for index, layer in enumerate(self.weights.layers):
            hidden = hidden + self._attend(hidden, layer, index, angles, batch, attention)
            hidden = hidden + self._mlp(hidden, layer, batch.owners)
        return hidden

    def _logits(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        hidden = hidden.index_select(0, batch.sampled)
        hidden = self._norm(hidden, self.weights.norm, batch.sampled_owners)
        return apply_lm_head(hidden, self.weights.lm_head, batch.sampled_owners).float()

    def _embed(self, tokens: torch.Tensor, rows: RowOwners) -> torch.Tensor:
        table = self.weights.embedding
        hidden = embedding(tokens.clamp(max=len(table) - 1), table)
        for r in rows.deltas:
            if r.delta.embedding is None:
                continue
            ids = tokens[r.begin : r.end]
            if r.delta.vocab > len(table):  # added tokens have no row in the base
                hidden[r.begin : r.end].masked_fill_((ids >= len(table))[:, None], 0)
            hidden[r.begin : r.end] += delta_rows(r.delta.embedding, ids).to(hidden.dtype)
        return hidden

    def _attend(
        self,
        hidden: torch.Tensor,
        layer: Layer,
        index: int,
        angles: tuple[torch.Tensor, torch.Tensor],
        batch: Batch,
        attention: Attention,
    ) -> torch.Tensor:
        config, rows = self.config, batch.owners
        fused = apply_linear(self._norm(hidden, layer.input_norm, rows), layer.qkv, rows)
        qkv = fused.view(len(fused), -1, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            queries, keys = qkv[:, : config.heads], qkv[:, config.heads : config.heads + config.kv_heads]
            queries.copy_(self._norm(queries, layer.q_norm, rows))
            keys.copy_(self._norm(keys, layer.k_norm, rows))
        Rope.rotate(qkv[:, : config.heads + config.kv_heads], angles)
        return self._summed(apply_linear(attention.attend(index, qkv), layer.o, rows))

    def _mlp(self, hidden: torch.Tensor, layer: Layer, rows: RowOwners) -> torch.Tensor:
        gate, up = apply_linear(self._norm(hidden, layer.post_norm, rows), layer.gate_up, rows).chunk(2, dim=1)
        return self._summed(apply_linear(silu(gate).mul_(up), layer.down, rows))

    def _summed(self, partial: torch.Tensor) -> torch.Tensor:
        if self._add_up is not None:
            self._add_up(partial)
        return partial

    def _norm(self, x: torch.Tensor, norm: Norm, rows: RowOwners) -> torch.Tensor:
        """RMS norm over the last dimension, with each row's own weight."""
        normed = rms_norm(x, norm.weight.shape, eps=self.config.norm_eps)
        own = [r for r in rows.deltas if norm.name in r.delta.norms]
        if not own:
            return normed.mul_(norm.weight)
        scaled = normed * norm.weight
        for r in own:
            torch.mul(normed[r.begin : r.end], r.delta.norms[norm.name], out=scaled[r.begin : r.end])
        return scaled


def vocab_of(model: LlamaModel, delta: DeltaWeights | None) -> int:
    """Returns the vocabulary size of the base or of a fine-tune: token ids must be below it."""
    return delta.vocab if delta is not None else len(model.weights.embedding)
