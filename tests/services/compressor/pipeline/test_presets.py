"""Every preset over every architecture, in one file or several, tied or not, in three dtypes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.compatibility import check_delta_against_base
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.manifest import Manifest
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from tests.services.compressor.pipeline.conftest import make_model, save_tokenizer, tune

WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}  # headers weigh less than codes
PRESETS = ("tiny", "balanced", "faithful", "exact")
KINDS: dict[str, tuple[dict[str, Any], torch.dtype, str | None]] = {
    "LlamaForCausalLM": ({"tie_word_embeddings": False}, torch.bfloat16, "200KB"),
    "MistralForCausalLM": ({"tie_word_embeddings": False, "sliding_window": 8}, torch.float16, None),
    "Qwen2ForCausalLM": ({"tie_word_embeddings": True}, torch.float32, "200KB"),
    "Qwen3ForCausalLM": ({"tie_word_embeddings": True, "head_dim": 32}, torch.bfloat16, None),
}


def save_as(model: Any, folder: Path, dtype: torch.dtype, shard: str | None) -> Path:
    """Saves a model as transformers does, in one file or in several."""
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    save_tokenizer(folder)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == bool(shard)
    return folder


@pytest.mark.parametrize("architecture", list(KINDS))
def test_all_presets(tmp_path: Path, compress: Callable[..., Manifest], architecture: str):
    config, dtype, shard = KINDS[architecture]
    model = make_model(architecture, **{**WIDE, **config})
    base = save_as(model, tmp_path / "base", dtype, shard)
    tune(model.float())
    tuned = save_as(model, tmp_path / "tuned", dtype, shard)
    checkpoints = Checkpoint.open(base), Checkpoint.open(tuned)
    distances = []
    for preset in PRESETS:
        compress((base, tuned), preset, codec=None, preset=preset)
        reader = DeltaReader.open(tmp_path / preset / "out")
        check_delta_against_base(
            reader.manifest, checkpoints[0].config, checkpoints[0].tensors, fingerprint(checkpoints[0])
        )
        merged = merged_state_dict(checkpoints[0], reader)
        assert set(merged) == set(checkpoints[1].tensors)
        distances.append(
            sum(float((merged[name] - checkpoints[1].read(name).float()).square().sum()) for name in merged)
        )
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == 0.0
    assert distances[0] > distances[2] > 0.0
