"""Writes LoRA adapters as PEFT saves them, with the fine-tune that each one makes of its base as oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING, LM_HEAD

PREFIX = "base_model.model."
ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Made:
    """An adapter's folder, and W + s·B·A in float32 of every tensor of the fine-tune."""

    folder: Path
    tuned: dict[str, torch.Tensor]

    def change(self, **settings: Any) -> None:
        """Changes adapter_config.json."""
        path = self.folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def linears(base: Checkpoint, *kinds: str) -> list[str]:
    """Names of the base's linear modules of some kinds."""
    weights = [name.removesuffix(".weight") for name in base.tensors if name.endswith(".weight")]
    return [module for module in weights if module.rpartition(".")[2] in kinds]


def make_adapter(
    folder: Path,
    base: Checkpoint,
    ranks: Mapping[str, int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    alphas: Mapping[str, float] | None = None,
    whole: Mapping[str, torch.Tensor] | None = None,
    infix: str = "",
    seed: int = 0,
    size: float = 0.15,
    **settings: Any,
) -> Made:
    """Writes a random adapter.

    Args:
        folder: where to.
        base: what it is for.
        ranks: rank by module, e.g. {"model.layers.0.mlp.up_proj": 4}.
        dtype: of its tensors.
        alphas: lora_alpha by module where it is not 16.
        whole: tensors that replace the base's, by name, e.g. {"lm_head.weight": ...}.
        infix: between lora_A and weight, e.g. ".default".
        seed: of the random factors.
        size: their standard deviation.
        **settings: of adapter_config.json.
    """
    generator = torch.Generator().manual_seed(seed)
    tuned = {name: base.read(name).float() for name in base.tensors}
    stored: dict[str, torch.Tensor] = {}
    for module, rank in ranks.items():
        source = f"{module}.weight" if f"{module}.weight" in base.tensors else EMBEDDING
        weight = base.read(source).float()
        embedding = module == "model.embed_tokens"
        rows, columns = weight.T.shape if embedding else weight.shape
        a = (size * torch.randn(rank, columns, generator=generator)).to(dtype)
        b = (size * torch.randn(rows, rank, generator=generator)).to(dtype)
        alpha = (alphas or {}).get(module, 16)
        scaling = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        delta = scaling * (b.float() @ a.float())
        tuned[f"{module}.weight"] = weight + (delta.T if embedding else delta)
        for letter, factor in (("A", a), ("B", b)):
            key = f"lora_embedding_{letter}{infix}" if embedding else f"lora_{letter}{infix}.weight"
            stored[f"{PREFIX}{module}.{key}"] = factor
        if LM_HEAD not in base.tensors and module in ("model.embed_tokens", "lm_head"):
            tuned.setdefault(LM_HEAD, base.read(EMBEDDING).float())  # PEFT trains one of the two
    for name, values in (whole or {}).items():
        stored[PREFIX + name] = values
        tuned[name] = values.float()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "somebody/base", "bias": "none",
        "r": min(ranks.values(), default=8), "lora_alpha": 16, "fan_in_fan_out": False, "use_dora": False,
        "rank_pattern": dict(ranks), "alpha_pattern": dict(alphas or {}), "modules_to_save": None,
        "init_lora_weights": True, "lora_dropout": 0.1, "peft_version": "0.21.2", **settings,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return Made(folder, tuned)
