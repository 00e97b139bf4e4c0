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


@pytest.mark.parametrize(("architecture", "config"), CONFIGS)
@torch.no_grad()
def test_traced_layers_are_the_same_and_taps_are_of_their_linears(
    tmp_path: Path, architecture: str, config: dict[str, Any]
):
    checkpoint = Checkpoint.open(save(make_model(architecture, **config), tmp_path / "m"))
    pair = Pair(checkpoint, checkpoint, CPU)
    decoder = Decoder(checkpoint.config, CPU)
    hidden = torch.randn(2, 11, 32)
    for layer in range(decoder.layers):
        weights = pair.tuned_layer(layer)
        output, taps = decoder.traced(layer, weights, hidden)
        assert torch.equal(output, decoder.forward(layer, weights, hidden))
        assert set(taps) == {name for name in weights if name.endswith("proj.weight")}
        for name, tap in taps.items():
            expected = tap.input @ weights[name].T + weights.get(name.replace("weight", "bias"), torch.zeros(()))
            torch.testing.assert_close(tap.output, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_taps(tmp_path: Path):
    """A change of a linear's output moves the layer's output as its gradient says."""
    checkpoint = Checkpoint.open(save(make_model(attention_bias=True), tmp_path / "m"))
    decoder, weights = Decoder(checkpoint.config, CPU), Pair(checkpoint, checkpoint, CPU).tuned_layer(1)
    hidden, upstream = torch.randn(1, 9, 32).requires_grad_(), torch.randn(1, 9, 32)
    output, taps = decoder.traced(1, weights, hidden)
    gradients = torch.autograd.grad(output, [tap.output for tap in taps.values()], upstream)
    for (name, tap), gradient in zip(taps.items(), gradients, strict=True):
        change = 1e-3 * torch.randn(weights[name].shape[0])
        bias = name.replace("weight", "bias")
        moved = weights | {bias: weights.get(bias, torch.zeros_like(change)) + change}
        if bias not in weights and name.split(".")[1] not in ("o_proj", "down_proj"):
            continue  # the module has no bias to move
        expected = float((gradient * change).sum())
        found = float(((decoder.forward(1, moved, hidden) - output) * upstream).detach().sum())
        assert found == pytest.approx(expected, rel=0.05, abs=1e-3)
        assert tap.output.shape == gradient.shape


@torch.no_grad()
def test_taps_end_with_their_call(tmp_path: Path):
    checkpoint = Checkpoint.open(save(make_model(), tmp_path / "m"))
    decoder, weights = Decoder(checkpoint.config, CPU), Pair(checkpoint, checkpoint, CPU).tuned_layer(1)
    taps = decoder.traced(1, weights, torch.randn(1, 9, 32))[1]
    before = dict(taps)
    decoder.forward(1, weights, torch.randn(1, 9, 32))
    assert all(taps[name] is tap for name, tap in before.items())
