"""ΔCompress of DeltaZip (Yao, Hu, Klimovic, EuroSys'25, arXiv 2312.05215, section 4), as published.

Layer after layer, [q, k, v] → [o] → [gate, up] → [down]: Δ is pruned 2:4 and quantised with error feedback under the
second moments of the linear's inputs; the linear then becomes W_b + Δ̂, so that what comes after sees compressed
activations. Embeddings, norms and lm_head keep the fine-tune's values.

An implementation of its own, over modules of `transformers`: it shares nothing with the product's codecs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from benchmarks.compression_methods import sparse_gpt
from benchmarks.compression_methods.case import STORED_BITS, Case, Method, StateDict, is_linear
from benchmarks.compression_methods.models import build

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_MAX_TOKENS = 4096
_INDEX_BITS = 2  # where a kept value stands among its 4


def deltacompress(bits: int, *, feedback: bool = True) -> Method:
    """Returns the method with values of 2 or 4 bits; `feedback` is False only for comparison."""

    @torch.no_grad()
    def method(base: StateDict, tuned: StateDict, case: Case) -> tuple[StateDict, int]:
        model = build(case.config, tuned, case.device)
        hidden = [model.model.embed_tokens(tokens) for tokens in _equal_lengths(case.sequences, case.device)]
        merged = dict(tuned)
        for number, layer in enumerate(model.model.layers):
            for stage in STAGES:
                gram = _gram(model, layer, stage[0], hidden)
                for name in stage:
                    key = f"model.layers.{number}.{name}.weight"
                    merged[key] = base[key] + _code(tuned[key] - base[key], gram, bits, feedback=feedback)
                    layer.get_submodule(name).weight = Parameter(merged[key].to(case.device), requires_grad=False)
            hidden = [_forward(model, layer, states) for states in hidden]
        return merged, sum(_stored_bits(name, weight, bits) for name, weight in tuned.items())

    return method


def _code(delta: torch.Tensor, gram: torch.Tensor, bits: int, *, feedback: bool) -> torch.Tensor:
    return sparse_gpt.compress(delta.to(gram.device), gram, bits, feedback=feedback).cpu()


def _stored_bits(name: str, weight: torch.Tensor, bits: int) -> int:
    if not is_linear(name):
        return STORED_BITS * weight.numel()
    kept = weight.numel() * sparse_gpt.PRUNED // sparse_gpt.GROUP
    return kept * (bits + _INDEX_BITS) + STORED_BITS * weight.shape[0]


def _equal_lengths(sequences: Sequence[Sequence[int]], device: str) -> Iterator[torch.Tensor]:
    """Yields tokens [B, T] of sequences that are equally long, so that nothing is padded."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    for length, group in sorted(by_length.items()):
        step = max(1, _MAX_TOKENS // length)
        for begin in range(0, len(group), step):
            yield torch.tensor(group[begin : begin + step], device=device)


def _gram(model: Any, layer: Any, name: str, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns H = XXᵀ/T [K, K] of a linear's inputs in a layer as it is now."""
    linear = layer.get_submodule(name)
    gram = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)
    tokens = 0

    def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal tokens
        rows = inputs[0].reshape(-1, gram.shape[0])
        gram.addmm_(rows.T, rows)
        tokens += len(rows)

    hook = linear.register_forward_pre_hook(add)
    try:
        for states in hidden:
            _forward(model, layer, states)
    finally:
        hook.remove()
    return gram / tokens


def _forward(model: Any, layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Returns hidden states after a layer, [B, T, H], causal."""
    positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
    rotary = model.model.rotary_emb(hidden, positions)
    out = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary, use_cache=False)
    states: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return states
