"""The parts of a checkpoint's config.json that decide the arithmetic of the Llama family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaserve.errors import FormatError, InvalidArgumentError, UnsupportedModelError

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of the model.

    Attributes:
        windows: for each layer the sliding window in tokens, 0 for full attention.
        source: transformers' config object, for its RoPE formulas.
    """

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context: int
    windows: tuple[int, ...]
    source: Any

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output features of q_proj, k_proj and v_proj."""
        kv = self.kv_heads * self.head_dim
        return self.heads * self.head_dim, kv, kv


def read_config(folder: Path, max_context: int = 0) -> ModelConfig:
    """Reads config.json of a checkpoint.

    Args:
        folder: of the checkpoint.
        max_context: bound on prompt and output together, 0 for the config's own.

    Raises:
        FormatError: config.json is missing or malformed.
        UnsupportedModelError: another architecture, activation or RoPE type than the engine computes.
        InvalidArgumentError: `max_context` exceeds what the model was made for.
    """
    from transformers import AutoConfig

    try:
        source = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise FormatError(f"config.json in {folder} cannot be read: {error}") from error
    _check_supported(source)
    context = int(source.max_position_embeddings)
    if max_context > context:
        message = f"max_context is {max_context}; the base was made for {context} tokens"
        raise InvalidArgumentError(message, field="max_context")
    heads = int(source.num_attention_heads)
    return ModelConfig(
        vocab=int(source.vocab_size),
        hidden=int(source.hidden_size),
        intermediate=int(source.intermediate_size),
        layers=int(source.num_hidden_layers),
        heads=heads,
        kv_heads=int(source.num_key_value_heads or heads),
        head_dim=int(getattr(source, "head_dim", None) or source.hidden_size // heads),
        norm_eps=float(source.rms_norm_eps),
        context=max_context or context,
        windows=_windows(source),
        source=source,
    )


def _check_supported(source: Any) -> None:
    architecture = (source.architectures or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(f"architecture is {architecture}; expected one of {', '.join(ARCHITECTURES)}")
    if source.hidden_act != "silu":
        raise UnsupportedModelError(f"hidden_act is {source.hidden_act!r}; expected 'silu'")
    rope = (source.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise UnsupportedModelError(f"rope_type is {rope!r}; expected one of {', '.join(ROPE_TYPES)}")
    if source.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor is set; expected rotary embedding of whole heads")


def _windows(source: Any) -> tuple[int, ...]:
    """Returns each layer's window as transformers applies it: Mistral's to all layers, Qwen's by layer_types."""
    window = int(getattr(source, "sliding_window", None) or 0)
    if source.model_type == "mistral":
        return (window,) * int(source.num_hidden_layers)
    kinds = getattr(source, "layer_types", None) or ["full_attention"] * int(source.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
