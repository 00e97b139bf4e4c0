"""What of a config.json changes what a model computes, in one spelling. Free of torch.

Configs of the same model differ in spelling with the release of `transformers` that wrote them; these functions give
absent keys their meaning, so that two configs compute alike exactly when the results are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltaserve.delta.architectures import MAX_LAYERS, architecture_of
from deltaserve.errors import FormatError

_PLAIN: Mapping[str, Any] = {
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}
_ROTATED_WHOLE = 1.0
_MISTRAL_WINDOW = 4096  # what MistralConfig means by an absent key; null means no window


def maths_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that must be equal for two models to share a batch; vocabulary and tying are left out.

    Args:
        config: contents of a config.json of a supported architecture.

    Raises:
        FormatError: a key is of a wrong type.
        UnsupportedModelError: see `architecture_of`.
    """
    maths = {key: _value(config, key, absent) for key, absent in _PLAIN.items()}
    maths["num_key_value_heads"] = _value(config, "num_key_value_heads", config.get("num_attention_heads"))
    maths["head_dim"] = _head_dim(config)
    maths["attention_bias"] = bool(config.get("attention_bias", False))
    maths["mlp_bias"] = bool(config.get("mlp_bias", False))
    maths["rope_parameters"] = rope_of(config)
    maths["sliding windows by layer"] = windows_of(config)
    return maths


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the RoPE parameters; always has `rope_type` and `rope_theta`. Raises FormatError."""
    rope = {**_mapping(config, "rope_scaling"), **_mapping(config, "rope_parameters")}
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope.pop("type", None)
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if theta is not None and (isinstance(theta, bool) or not isinstance(theta, (int, float))):
        raise FormatError(f"config.json: rope_theta is {str(theta)[:80]}; expected a number")
    if isinstance(theta, int) and abs(theta) >= 1 << 63:  # JSON has no largest number, float has
        raise FormatError(f"config.json: rope_theta has {len(str(theta))} digits; expected a number below 2^63")
    rope["rope_theta"] = float(theta or 10000.0)
    if rope.get("partial_rotary_factor") == _ROTATED_WHOLE:
        rope.pop("partial_rotary_factor")
    if rope["rope_type"] != "default":  # these scale with the context that the model was trained for
        rope.setdefault("max_position_embeddings", config.get("max_position_embeddings"))
    return {key: value for key, value in rope.items() if value is not None}


def windows_of(config: Mapping[str, Any]) -> list[int | None]:
    """Returns each layer's sliding window in tokens, None where attention sees everything. Raises FormatError."""
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or not 0 < layers <= MAX_LAYERS:
        raise FormatError(f"config.json: num_hidden_layers is {str(layers)[:80]}; expected 1 to {MAX_LAYERS}")
    architecture = architecture_of(config)
    if architecture == "LlamaForCausalLM":
        return [None] * layers
    if architecture == "MistralForCausalLM":
        return [config.get("sliding_window", _MISTRAL_WINDOW)] * layers
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = _value(config, "max_window_layers", 28)
    types = config.get("layer_types") or ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise FormatError(f"config.json: layer_types is {str(types)[:80]}; expected {layers} names")
    return [window if kind == "sliding_attention" else None for kind in types]


def _head_dim(config: Mapping[str, Any]) -> Any:
    head = config.get("head_dim")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if head is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return hidden // heads
    return head


def _value(config: Mapping[str, Any], key: str, absent: Any) -> Any:
    value = config.get(key)
    return absent if value is None else value


def _mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(f"config.json: {key} is {str(value)[:80]}; expected an object")
    return value
