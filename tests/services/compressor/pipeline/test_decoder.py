import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING
from deltaserve.errors import UnsupportedModelError
from services.compressor.pipeline.batches import make_batches
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.quality import Head
from services.compressor.pipeline.streams import Stream
from tests.services.compressor.pipeline.conftest import make_model, save

CPU = torch.device("cpu")


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("LlamaForCausalLM", {}),
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    ("LlamaForCausalLM", rope("linear", factor=4.0)),
    ("LlamaForCausalLM", rope("dynamic", factor=2.0)),
    ("LlamaForCausalLM", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    ("LlamaForCausalLM", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=32)),
    ("MistralForCausalLM", {"sliding_window": 7, "head_dim": 16}),
    ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("Qwen3ForCausalLM", {"head_dim": 16, "tie_word_embeddings": False}),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "config"), CONFIGS)
@torch.no_grad()
def test_streamed_logits_are_those_of_the_whole_model(tmp_path: Path, architecture: str, config: dict[str, Any]):
    model = make_model(architecture, **config)
    checkpoint = Checkpoint.open(save(model, tmp_path / "m"))
    model = type(model).from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    pair = Pair(checkpoint, checkpoint, CPU)
    decoder = Decoder(json.loads((tmp_path / "m" / "config.json").read_text()), CPU)
    sequences = [[(7 * i + n) % 250 for i in range(n)] for n in (1, 5, 20, 30, 31, 100)]
    stream = Stream(decoder, make_batches(sequences, 64), Hidden(Memory(10_000), tmp_path, CPU))
    stream.begin(pair.tuned_tensor(EMBEDDING))
    for layer in range(decoder.layers):
        stream.advance(layer, pair.tuned_layer(layer))
    matrix = pair.tuned_tensor(EMBEDDING if checkpoint.tied else "lm_head.weight")
    head = Head(pair.tuned_tensor("model.norm.weight"), matrix)
    for i, batch in enumerate(stream.batches):
        for place, row in enumerate(batch.rows):
            whole = model(torch.tensor([sequences[row]])).logits[0]
            streamed = head.logits(stream, stream.hidden[i][place, : len(sequences[row])])
            torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-5)


def test_config_that_transformers_cannot_build(tmp_path: Path):
    config = make_model().config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    with pytest.raises(UnsupportedModelError, match="cannot build"):
        Decoder(config | {"hidden_act": "no-such-function"}, CPU)
