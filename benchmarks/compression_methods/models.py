"""Models of `transformers` over given weights, and batches for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.compression_methods.case import StateDict

_MAX_TOKENS = 4096


def build(config: Any, weights: StateDict, device: str) -> Any:
    """Returns a float32 model in evaluation mode that shares memory with `weights` where they are on `device`.

    Raises:
        ValueError: weights that the model does not have, or lacks.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    on_device = {name: weight.to(device, torch.float32) for name, weight in weights.items()}
    missing, unexpected = model.load_state_dict(on_device, strict=False, assign=True)
    tied = bool(config.tie_word_embeddings) and missing == ["lm_head.weight"]
    if unexpected or (missing and not tied):
        raise ValueError(f"weights do not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}")
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are computed, not loaded
    return model.to(device).eval().requires_grad_(requires_grad=False)


def padded(sequences: Sequence[Sequence[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens int64 [B, T] padded on the right and a bool mask [B, T] of what is no padding.

    Causal attention keeps padding on the right from every token before it, so models need no mask.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    valid = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
    return tokens.to(device), valid.to(device)


def batches(sequences: Sequence[Sequence[int]], max_tokens: int = _MAX_TOKENS) -> Iterator[list[int]]:
    """Yields numbers of sequences of like lengths, at most `max_tokens` with padding (or one sequence) a time."""
    chosen: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        if chosen and (len(chosen) + 1) * len(sequences[number]) > max_tokens:
            yield chosen
            chosen = []
        chosen.append(number)
    if chosen:
        yield chosen
