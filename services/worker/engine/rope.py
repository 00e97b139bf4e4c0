"""Rotary position embedding in all variants that the Llama family uses."""

from __future__ import annotations

import torch

from services.worker.engine.config import ModelConfig


class Rope:
    """Cosines and sines of positions, and their application to heads.

    Frequencies do not depend on the batch. The `dynamic` variant scales only beyond max_position_embeddings, where the
    engine never goes.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        frequencies, self._scale = _frequencies(config)
        self._frequencies = frequencies.to(device)  # [head_dim / 2], float32

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (cos, sin) of positions [T], each [T, 1, head_dim]; sines of the first half are negated."""
        angles = torch.outer(positions.float(), self._frequencies)
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return torch.cat((cos, cos), 1).unsqueeze(1).to(dtype), torch.cat((-sin, sin), 1).unsqueeze(1).to(dtype)

    @staticmethod
    def rotate(heads: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Rotates heads [T, H, head_dim] in place."""
        cos, sin = angles
        swapped = heads.roll(heads.shape[-1] // 2, -1)
        heads.mul_(cos).addcmul_(swapped, sin)


def _frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.source.rope_parameters
    if rope.get("rope_type", "default") == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / (float(rope["rope_theta"]) ** exponents), 1.0
    frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config.source, torch.device("cpu"))
    return frequencies.float(), float(scale)
