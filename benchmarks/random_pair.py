"""Random Llama pairs of real shapes: a base, and a fine-tune whose delta looks like a real one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deltaserve.delta.architectures import expected_shapes
from deltaserve.delta.classes import EMBEDDING, LM_HEAD

_TOKENIZER = Path(__file__).parents[1] / "examples" / "models" / "base"
_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
    },
    "1.3b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
    },
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}
"""Configs by name; `8b` is Llama-3.1-8B's."""

_STD = 0.02
_DELTA = 0.03  # standard deviation of a delta, relative to the weights'
_ROW_SPREAD = 0.5  # of the logarithm of a row's size: some rows change several times as much as others
_RANK, _LOW_RANK = 8, 0.5  # directions that stand out, and their size relative to the rest
_COMMON = 1.0  # size of the one direction that all rows of an embedding move in, relative to the rest


def generate(base: Path, tuned: Path, config: Mapping[str, Any], device: torch.device, seed: int = 0) -> int:
    """Writes a random base and a fine-tune of it, a shard a layer; no more than one shard of each is in memory.

    Args:
        base: folder to make for the base.
        tuned: folder to make for the fine-tune.
        config: see `config_of`.
        device: where random numbers are drawn.
        seed: of these numbers.

    Returns:
        Parameters of one of the two.
    """
    random = torch.Generator(device).manual_seed(seed)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in expected_shapes(config).items():
        parts = name.split(".")
        shards.setdefault(f"layer-{int(parts[2]):03d}" if parts[1] == "layers" else parts[-2], {})[name] = shape
    for folder in (base, tuned):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(_TOKENIZER / file, folder / file)
    for shard, shapes in sorted(shards.items()):
        before, after = {}, {}
        for name, shape in shapes.items():
            weight = _weight(name, shape, int(config["num_hidden_layers"]), random)
            before[name] = weight.cpu()
            after[name] = (weight.float() + _delta(name, weight, random)).to(weight.dtype).cpu()
        save_file(before, base / f"{shard}.safetensors")
        save_file(after, tuned / f"{shard}.safetensors")
    index = {name: f"{shard}.safetensors" for shard, shapes in shards.items() for name in shapes}
    for folder in (base, tuned):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(torch.Size(shape).numel() for shapes in shards.values() for shape in shapes.values())


def config_of(shape: str, layers: int | None = None) -> dict[str, Any]:
    """Returns the config of one of SHAPES, with another number of layers if asked for."""
    return {**_LLAMA, **SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}


def _weight(name: str, shape: tuple[int, ...], layers: int, random: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, device=random.device, dtype=torch.bfloat16)
    # as models are initialised: what layers add to the hidden states does not grow with their number
    std = _STD / (2 * layers) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else _STD
    return torch.randn(shape, generator=random, device=random.device).mul_(std).to(torch.bfloat16)


def _delta(name: str, weight: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Returns Δ, float32 of the weight's shape, before it is rounded to the weight's dtype."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=random.device)

    if weight.dim() == 1:
        return normal(*weight.shape).mul_(0.01)
    rows, columns = weight.shape
    sizes = normal(rows, 1).mul_(_ROW_SPREAD).exp_()
    delta = normal(rows, columns).mul_(sizes)
    delta.addmm_(normal(rows, _RANK), normal(_RANK, columns), alpha=_LOW_RANK * _RANK**-0.5)
    if name in (EMBEDDING, LM_HEAD):
        delta.add_(normal(1, columns), alpha=_COMMON)
    return delta.mul_(_DELTA * float(weight.std()) / float(delta.std()))
