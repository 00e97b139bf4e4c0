"""What kind of tensor a name of the Llama family stands for. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from deltaserve.delta.manifest import TensorClass

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

_DERIVED_SUFFIXES = (".rotary_emb.inv_freq", ".self_attn.rotary_emb.cos_cached", ".self_attn.rotary_emb.sin_cached")


def classify(name: str, shape: Sequence[int]) -> TensorClass:
    """Returns the class of a tensor by its name, as in `transformers`, and its shape."""
    if name == EMBEDDING and len(shape) == 2:
        return "embedding"
    if name == LM_HEAD and len(shape) == 2:
        return "lm_head"
    if name.endswith(".bias") and len(shape) == 1:
        return "bias"
    if name.endswith("norm.weight") and len(shape) == 1:
        return "norm"
    if name.endswith("_proj.weight") and len(shape) == 2:
        return "linear"
    return "other"


def is_derived(name: str) -> bool:
    """Tells whether a checkpoint's tensor is a cache that models compute by themselves: it is ignored everywhere."""
    return name.endswith(_DERIVED_SUFFIXES)
