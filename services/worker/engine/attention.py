"""Attention over a paged KV cache. `Attention` is the seam between the model and its backends."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from services.worker.engine.batch import Batch, DecodeRows, PrefillRows
from services.worker.engine.config import ModelConfig


class Attention(Protocol):
    """What the model asks of attention. A backend owns the KV cache."""

    def begin(self, batch: Batch) -> None:
        """Prepares a step: everything that all layers share."""

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Stores keys and values of the step's rows, then attends.

        Args:
            layer: index of the decoder layer.
            qkv: [T, heads + 2 · kv_heads, head_dim], rotated queries, rotated keys, values.

        Returns:
            [T, heads · head_dim].
        """


class PagedSdpa:
    """torch's SDPA over gathered blocks: all decoding rows of like length in one padded call, each prompt chunk in one.

    The cache is [layers, blocks, block_size, 2 · kv_heads, head_dim], keys before values, so that one gather fetches
    both. Entries that are not written yet are masked, but 0 · NaN is NaN: blocks are zeroed before they are partly
    filled, so that a sequence whose values overflowed cannot reach the next owner of its blocks.
    """

    def __init__(
        self, config: ModelConfig, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.layers, blocks, block_size, 2 * config.kv_heads, config.head_dim)
        self._cache = torch.zeros(shape, dtype=dtype, device=device)
        self._config = config
        self._scale = config.head_dim**-0.5
        self._batch: Batch
        self._decode_masks: dict[int, list[torch.Tensor]] = {}
        self._prefill_masks: dict[int, list[torch.Tensor | None]] = {}

    def begin(self, batch: Batch) -> None:
        """Prepares masks of every window size and cleans new blocks."""
        self._batch = batch
        if len(batch.fresh_blocks):
            self._cache.index_fill_(1, batch.fresh_blocks, 0)
        for window in set(self._config.windows):
            self._decode_masks[window] = [self._decode_mask(rows, window) for rows in batch.decode]
            self._prefill_masks[window] = [self._prefill_mask(rows, window) for rows in batch.prefill]

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See Attention.attend."""
        config = self._config
        cache = self._cache[layer]
        cache.view(-1, *cache.shape[2:]).index_copy_(0, self._batch.slots, qkv[:, config.heads :])
        window = config.windows[layer]
        output = torch.empty(len(qkv), config.heads, config.head_dim, dtype=qkv.dtype, device=qkv.device)
        for decode, mask in zip(self._batch.decode, self._decode_masks[window], strict=True):
            output[decode.rows] = self._decode(qkv[decode.rows, : config.heads], cache, decode, mask)
        for chunk, chunk_mask in zip(self._batch.prefill, self._prefill_masks[window], strict=True):
            output[chunk.begin : chunk.end] = self._prefill(qkv[chunk.begin : chunk.end], cache, chunk, chunk_mask)
        return output.view(len(qkv), -1)

    def _decode(
        self, queries: torch.Tensor, cache: torch.Tensor, decode: DecodeRows, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attends with one query [heads, head_dim] a row; the heads that share a KV head act as query positions."""
        config = self._config
        gathered = cache.index_select(0, decode.blocks.view(-1)).view(
            len(queries), -1, 2 * config.kv_heads, config.head_dim
        )
        keys, values = gathered.transpose(1, 2).chunk(2, 1)
        grouped = queries.reshape(len(queries), config.kv_heads, -1, config.head_dim)
        output = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=self._scale)
        return output.reshape(queries.shape)

    def _prefill(
        self, qkv: torch.Tensor, cache: torch.Tensor, chunk: PrefillRows, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attends with a chunk of one sequence; without a mask the chunk is all there is, and causal."""
        heads, kv_heads = self._config.heads, self._config.kv_heads
        by_head = qkv.transpose(0, 1)
        queries, fresh = by_head[:heads], by_head[heads:]
        if mask is not None:
            gathered = cache.index_select(0, chunk.blocks).view(-1, 2 * kv_heads, self._config.head_dim)
            fresh = gathered[: chunk.start + len(qkv)].transpose(0, 1)
        keys, values = fresh.chunk(2)
        output = scaled_dot_product_attention(
            queries[None], keys[None], values[None],
            attn_mask=mask, is_causal=mask is None, scale=self._scale, enable_gqa=heads != kv_heads,
        )  # fmt: skip
        return output[0].transpose(0, 1)

    def _decode_mask(self, decode: DecodeRows, window: int) -> torch.Tensor:
        """Returns an additive mask [rows, 1, 1, slots]."""
        slots = torch.arange(decode.blocks.shape[1] * self._cache.shape[2], device=self._cache.device)
        lengths = decode.lengths[:, None]
        seen = slots < lengths
        if window:
            seen &= slots >= lengths - window
        return self._additive(seen)[:, None, None, :]

    def _prefill_mask(self, chunk: PrefillRows, window: int) -> torch.Tensor | None:
        """Returns an additive mask [rows, start + rows], None where plain causal attention over the chunk will do."""
        rows = chunk.end - chunk.begin
        if chunk.start == 0 and (not window or rows <= window):
            return None
        keys = torch.arange(chunk.start + rows, device=self._cache.device)
        queries = keys[chunk.start :, None]
        seen = keys <= queries
        if window:
            seen &= keys > queries - window
        return self._additive(seen)

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(seen.shape, dtype=self._cache.dtype, device=seen.device)
        return zeros.masked_fill_(~seen, float("-inf"))
