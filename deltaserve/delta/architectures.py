"""The architectures that are served, and the tensors that a config of theirs calls for. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from deltaserve.errors import FormatError, UnsupportedModelError

Shape = tuple[int, ...]
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True)
class _Sizes:
    hidden: int
    intermediate: int
    layers: int
    q: int  # rows of q_proj
    kv: int  # rows of k_proj and v_proj
    head: int
    vocab: int


def architecture_of(config: Mapping[str, Any]) -> str:
    """Returns the one architecture of a config.json.

    Raises:
        FormatError: `architectures` is not a list of one name.
        UnsupportedModelError: it is none of SUPPORTED.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise FormatError(f"config.json: architectures is {str(names)[:200]}; expected a list of one name")
    if names[0] not in SUPPORTED:
        raise UnsupportedModelError(
            f"architecture {names[0][:100]!r} is not supported; expected one of {', '.join(SUPPORTED)}",
            architecture=names[0][:100],
        )
    return names[0]


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Tells whether the config declares lm_head to be the embedding, as `transformers` reads it."""
    return bool(config.get("tie_word_embeddings", False))


def expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns name and shape of every tensor that a complete checkpoint of this config holds, lm_head only if untied.

    Raises:
        FormatError: a size is missing or no positive whole number.
        UnsupportedModelError: see `architecture_of`.
    """
    architecture = architecture_of(config)
    sizes = _sizes(config)
    shapes: dict[str, Shape] = {EMBEDDING: (sizes.vocab, sizes.hidden)}
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}"
        shapes.update((f"{prefix}.{name}", shape) for name, shape in _layer(architecture, config, sizes))
    shapes["model.norm.weight"] = (sizes.hidden,)
    if not ties_embeddings(config):
        shapes[LM_HEAD] = (sizes.vocab, sizes.hidden)
    return shapes


def _layer(architecture: str, config: Mapping[str, Any], sizes: _Sizes) -> Iterator[tuple[str, Shape]]:
    attention_bias = bool(config.get("attention_bias", False)) and architecture != "MistralForCausalLM"
    qkv_bias = attention_bias or architecture == "Qwen2ForCausalLM"
    o_bias = attention_bias and architecture != "Qwen2ForCausalLM"
    mlp_bias = bool(config.get("mlp_bias", False)) and architecture == "LlamaForCausalLM"
    yield "input_layernorm.weight", (sizes.hidden,)
    yield "post_attention_layernorm.weight", (sizes.hidden,)
    for name, rows in (("q", sizes.q), ("k", sizes.kv), ("v", sizes.kv)):
        yield from _linear(f"self_attn.{name}_proj", rows, sizes.hidden, qkv_bias)
    yield from _linear("self_attn.o_proj", sizes.hidden, sizes.q, o_bias)
    if architecture == "Qwen3ForCausalLM":
        yield "self_attn.q_norm.weight", (sizes.head,)
        yield "self_attn.k_norm.weight", (sizes.head,)
    for name in ("gate", "up"):
        yield from _linear(f"mlp.{name}_proj", sizes.intermediate, sizes.hidden, mlp_bias)
    yield from _linear("mlp.down_proj", sizes.hidden, sizes.intermediate, mlp_bias)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _sizes(config: Mapping[str, Any]) -> _Sizes:
    hidden = _count(config, "hidden_size")
    heads = _count(config, "num_attention_heads")
    head = hidden // heads if config.get("head_dim") is None else _count(config, "head_dim")
    kv_heads = heads if config.get("num_key_value_heads") is None else _count(config, "num_key_value_heads")
    layers = _count(config, "num_hidden_layers")
    if layers > MAX_LAYERS:
        raise FormatError(f"config.json: num_hidden_layers is {layers}; expected at most {MAX_LAYERS}")
    return _Sizes(
        hidden=hidden,
        intermediate=_count(config, "intermediate_size"),
        layers=layers,
        q=heads * head,
        kv=kv_heads * head,
        head=head,
        vocab=_count(config, "vocab_size"),
    )


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise FormatError(f"config.json: {key} is {str(value)[:80]}; expected a positive whole number")
    return value
