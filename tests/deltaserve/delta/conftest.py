"""Tiny random models, as folders on disk, and the zoo when it is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deltaserve.delta.architectures import expected_shapes
from deltaserve.delta.checkpoint import Checkpoint

Config = dict[str, Any]
WriteModel = Callable[..., Checkpoint]

TINY: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 9,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def tiny_config(**changes: Any) -> Config:
    return {**TINY, **changes}


def random_weights(config: Config, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(shape, generator=generator) + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in expected_shapes(config).items()
    }


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Writes a checkpoint folder and opens it."""

    def write(
        name: str, config: Config, weights: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16
    ) -> Checkpoint:
        import json

        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text('{"tokenizer": 1}')
        save_file({key: value.to(dtype).contiguous() for key, value in weights.items()}, folder / "model.safetensors")
        return Checkpoint.open(folder)

    return write


@pytest.fixture
def pair(write_model: WriteModel) -> tuple[Checkpoint, Checkpoint]:
    """A tiny base and a fine-tune of it."""
    config = tiny_config()
    base = random_weights(config, 0)
    change = random_weights(config, 1)
    tuned = {name: weight + 0.05 * change[name] for name, weight in base.items()}
    return write_model("base", config, base), write_model("tuned", config, tuned)


@pytest.fixture
def small_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes streams of planes that are as small as those of tiny models; the writer leaves such planes raw."""
    monkeypatch.setattr("deltaserve.delta.lossless.planes.MIN_GAIN_BYTES", 256)


@pytest.fixture
def zoo() -> Path:
    """The model zoo."""
    place = os.environ.get("DELTASERVE_ZOO")
    path = Path(place) if place else Path(__file__).parents[4] / "shared" / "zoo"
    if not (path / "base" / "model.safetensors").is_file():
        pytest.skip(f"NO ZOO at {path}: set DELTASERVE_ZOO to run this test")
    return path
