"""The decoder of `transformers`, one layer at a time: its modules without weights, and weights given to each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.func import functional_call
from torch.nn import functional

from deltaserve.delta.architectures import architecture_of
from deltaserve.delta.maths import windows_of
from deltaserve.errors import UnsupportedModelError

Weights = Mapping[str, torch.Tensor]
"""A layer's tensors by their names in it, e.g. `self_attn.q_proj.weight`; float32."""

_MODELS = {
    "LlamaForCausalLM": transformers.LlamaForCausalLM,
    "MistralForCausalLM": transformers.MistralForCausalLM,
    "Qwen2ForCausalLM": transformers.Qwen2ForCausalLM,
    "Qwen3ForCausalLM": transformers.Qwen3ForCausalLM,
}
_OUTPUTS = (("self_attn", "o_proj"), ("mlp", "down_proj"))


@dataclass(frozen=True, slots=True)
class Tap:
    """Input [B, T, K] and output [B, T, N] of a linear in the midst of a layer."""

    input: torch.Tensor
    output: torch.Tensor


class Decoder:
    """Computes layers of one model in float32, in steps between which calibration looks at inputs of linears.

    The modules are those of `transformers`, on the meta device; o_proj and down_proj are taken out of them, so that
    `attend` and `gate` return these two's inputs.

    Attributes:
        layers: how many there are.
        context: most positions.
        device: where it computes.
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        """Builds the modules from the contents of a config.json; raises UnsupportedModelError."""
        model_class = _MODELS[architecture_of(config)]
        try:
            parsed = model_class.config_class.from_dict(dict(config), attn_implementation="sdpa", dtype="float32")
            with torch.device("meta"):
                model = model_class(parsed).eval()
            self._rotary = type(model.model.rotary_emb)(parsed).to(device)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnsupportedModelError(f"transformers cannot build this config: {error}") from error
        self._windows = windows_of(config)
        self.device = device
        self._norm = model.model.norm
        self._layers = list(model.model.layers)
        for layer in self._layers:
            for owner, name in _OUTPUTS:
                setattr(layer.get_submodule(owner), name, torch.nn.Identity())
        self.layers = len(self._layers)
        self.context = int(parsed.max_position_embeddings)

    def forward(self, layer: int, weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
        """Returns hidden states after a layer, [B, T, H] from [B, T, H], causal from position 0."""
        attended = self.attend(layer, weights, self.attention_input(layer, weights, hidden))
        hidden = self.after_attention(weights, hidden, attended)
        return self.after_mlp(weights, hidden, self.gate(layer, weights, self.mlp_input(layer, weights, hidden)))

    def attention_input(self, layer: int, weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the input of q_proj, k_proj and v_proj, [B, T, H]."""
        output: torch.Tensor = self._call(layer, "input_layernorm", weights, hidden)
        return output

    def attend(self, layer: int, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the input of o_proj, [B, T, heads · head_dim]."""
        positions = torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)
        attended: torch.Tensor = self._call(
            layer,
            "self_attn",
            weights,
            inputs,
            position_embeddings=self._rotary(inputs, positions),
            attention_mask=self._mask(layer, inputs.shape[1]),
        )[0]
        return attended

    def after_attention(self, weights: Weights, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Returns hidden states between attention and MLP, [B, T, H]."""
        return hidden + _linear(weights, "self_attn.o_proj", attended)

    def mlp_input(self, layer: int, weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the input of gate_proj and up_proj, [B, T, H]."""
        output: torch.Tensor = self._call(layer, "post_attention_layernorm", weights, hidden)
        return output

    def gate(self, layer: int, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the input of down_proj, [B, T, intermediate]."""
        output: torch.Tensor = self._call(layer, "mlp", weights, inputs)
        return output

    def after_mlp(self, weights: Weights, hidden: torch.Tensor, gated: torch.Tensor) -> torch.Tensor:
        """Returns hidden states after the layer, [B, T, H]."""
        return hidden + _linear(weights, "mlp.down_proj", gated)

    def traced(self, layer: int, weights: Weights, hidden: torch.Tensor) -> tuple[torch.Tensor, dict[str, Tap]]:
        """Returns `forward` and, by weight name, input and output of each linear of the layer, for gradients."""
        taps: dict[str, Tap] = {}
        module = self._layers[layer]
        hooks = [
            linear.register_forward_hook(_tap_into(taps, f"{name}.weight"))
            for name, linear in module.named_modules()
            if isinstance(linear, torch.nn.Linear)
        ]
        try:
            attended = self.attend(layer, weights, self.attention_input(layer, weights, hidden))
            between = _tapped(taps, weights, "self_attn.o_proj", attended)
            hidden = hidden + between
            gated = self.gate(layer, weights, self.mlp_input(layer, weights, hidden))
            return hidden + _tapped(taps, weights, "mlp.down_proj", gated), taps
        finally:
            for hook in hooks:
                hook.remove()

    def final_norm(self, weight: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the input of lm_head, [..., H]."""
        output: torch.Tensor = functional_call(self._norm, {"weight": weight}, (hidden,))
        return output

    def _call(self, layer: int, name: str, weights: Weights, inputs: torch.Tensor, **kwargs: Any) -> Any:
        module = self._layers[layer].get_submodule(name)
        own = {key: weights[f"{name}.{key}"] for key, _ in module.named_parameters()}
        return functional_call(module, own, (inputs,), kwargs)

    def _mask(self, layer: int, length: int) -> torch.Tensor | None:
        """Bool [1, 1, T, T] where the layer's window is shorter than the sequence; None is plainly causal."""
        window = self._windows[layer]
        if window is None or window >= length:
            return None
        at = torch.arange(length, device=self.device)
        distance = at.unsqueeze(1) - at
        return ((distance >= 0) & (distance < window)).view(1, 1, length, length)


def _tap_into(taps: dict[str, Tap], name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor], torch.Tensor], None]:
    def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        taps[name] = Tap(inputs[0], output)

    return hook


def _tapped(taps: dict[str, Tap], weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    output = _linear(weights, name, inputs)
    taps[f"{name}.weight"] = Tap(inputs, output)
    return output


def _linear(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    return functional.linear(inputs, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
