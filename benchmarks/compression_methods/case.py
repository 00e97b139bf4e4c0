"""What every method is given: a base, a fine-tune of it, and the token sequences to calibrate with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

StateDict = dict[str, torch.Tensor]

STORED_BITS = 16  # of a value that is kept whole: checkpoints are bf16, baselines keep them in fp16


@dataclass(frozen=True)
class Case:
    """One fine-tune to compress.

    Attributes:
        base: folder of the base's checkpoint.
        tuned: folder of the fine-tune's checkpoint, with train.jsonl.
        config: the fine-tune's, of `transformers`.
        sequences: token sequences of the calibration set.
        device: torch device to compute on.
    """

    base: Path
    tuned: Path
    config: Any
    sequences: list[list[int]]
    device: str


Method = Callable[[StateDict, StateDict, Case], tuple[StateDict, int]]
"""(base, tuned, case) → merged weights in float32, stored bits."""


def load_weights(folder: Path) -> StateDict:
    """Returns all tensors of a checkpoint's safetensors in float32, on the CPU."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors; expected a checkpoint's folder")
    return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}


def load_config(folder: Path) -> Any:
    """Returns the configuration of a checkpoint."""
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def is_linear(name: str) -> bool:
    """Tells whether a tensor is the weight of a decoder layer's linear: what the published methods compress."""
    return name.endswith("_proj.weight")


def code_linears(
    base: StateDict, tuned: StateDict, code: Callable[[str, torch.Tensor], tuple[torch.Tensor, int]]
) -> tuple[StateDict, int]:
    """Codes the delta of every linear and keeps the rest of the fine-tune whole.

    Args:
        base: weights of the base.
        tuned: weights of the fine-tune.
        code: name and Δ [N, K] → Δ̂ [N, K] and its stored bits.

    Returns:
        Merged weights and all stored bits.
    """
    merged: StateDict = {}
    bits = 0
    for name, weight in tuned.items():
        if is_linear(name):
            decoded, stored = code(name, weight - base[name])
            merged[name] = base[name] + decoded
        else:
            merged[name], stored = weight, STORED_BITS * weight.numel()
        bits += stored
    return merged, bits
