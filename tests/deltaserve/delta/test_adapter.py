"""Adapters that are refused, and how the refusals read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaserve.delta.adapted import AdaptedCheckpoint, open_fine_tune
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.compatibility import check_compatible
from deltaserve.errors import DeltaServeError, FormatError, InvalidArgumentError, UnsupportedModelError
from tests.deltaserve.delta.adapters import PREFIX, Made, make_adapter
from tests.deltaserve.delta.conftest import WriteModel, random_weights, tiny_config

UP = "model.layers.1.mlp.up_proj"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(write_model: WriteModel) -> Checkpoint:
    config = tiny_config()
    return write_model("base", config, random_weights(config, 0))


def opened(made: Made, base: Checkpoint) -> AdaptedCheckpoint:
    adapted = open_fine_tune(made.folder, base)
    assert isinstance(adapted, AdaptedCheckpoint)
    check_compatible(base.config, base.tensors, adapted.config, adapted.tensors)
    adapted.check_contents()
    return adapted


REFUSED: list[tuple[dict[str, Any], type[DeltaServeError], str]] = [
    ({"peft_type": "IA3"}, UnsupportedModelError, "'IA3'.*merge_and_unload"),
    ({"peft_type": None}, UnsupportedModelError, "peft_type is 'None'"),
    ({"use_dora": True}, UnsupportedModelError, "use_dora"),
    ({"fan_in_fan_out": True}, UnsupportedModelError, "fan_in_fan_out"),
    ({"megatron_config": {"a": 1}}, UnsupportedModelError, "megatron_config"),
    ({"trainable_token_indices": [1]}, UnsupportedModelError, "trainable_token_indices"),
    ({"layer_replication": [[0, 1]]}, UnsupportedModelError, "layer_replication"),
    ({"init_lora_weights": "pissa_niter_4"}, UnsupportedModelError, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "olora"}, UnsupportedModelError, "init_lora_weights"),
    ({"init_lora_weights": 1}, UnsupportedModelError, "init_lora_weights"),
    ({"use_rslora": "no"}, FormatError, "use_rslora is 'no'"),
    ({"ensure_weight_tying": 1}, FormatError, "ensure_weight_tying is '1'"),
    ({"r": 0}, FormatError, "r has 0"),
    ({"r": True}, FormatError, "r has True"),
    ({"lora_alpha": None}, FormatError, "lora_alpha has None"),
    ({"lora_alpha": float("inf")}, FormatError, "lora_alpha has inf"),
    ({"rank_pattern": {UP: "4"}}, FormatError, "rank_pattern has 4"),
    ({"rank_pattern": {}, "r": 4}, InvalidArgumentError, "rank 4 .* call for"),
    ({"rank_pattern": [1]}, FormatError, "rank_pattern is"),
    ({"rank_pattern": {"(a+)+$": 2}}, FormatError, "Write the modules out by name"),
    ({"rank_pattern": {"(u|u)(u|u)(p|p)(p|p)": 2}}, FormatError, "Write the modules out by name"),
    ({"alpha_pattern": {f".*{i}": 2 for i in range(17)}}, FormatError, "Write the modules out by name"),
    ({"bias": "some"}, FormatError, "bias is 'some'"),
    ({"modules_to_save": "lm_head"}, FormatError, "modules_to_save is lm_head"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), REFUSED)
def test_configs_that_are_refused(
    tmp_path: Path, base: Checkpoint, settings: dict[str, Any], kind: type[DeltaServeError], message: str
) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 3, Q: 3})
    made.change(**settings)
    with pytest.raises(kind, match=message):
        opened(made, base)


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    tensors[PREFIX + new] = tensors.pop(PREFIX + old)


TENSORS: dict[str, tuple[Any, str]] = {
    "A without B": (lambda t: t.pop(f"{PREFIX}{UP}.lora_B.weight"), "lora_A and no lora_B"),
    "B without A": (lambda t: t.pop(f"{PREFIX}{UP}.lora_A.weight"), "lora_B and no lora_A"),
    "shape of A": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 35)}), r"\[3, 35\].*\[3, 36\]"),
    "shape of B": (lambda t: t.update({f"{PREFIX}{UP}.lora_B.weight": torch.zeros(9, 3)}), r"\[9, 3\].*\[44, 3\]"),
    "rank": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(4, 36)}), r"rank 3 .*\[3, 36\]"),
    "convolution": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 36, 1, 1)}), r"\[3, 36, 1, 1\]"),
    "integers": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 36).int()}), "I32.*BF16"),
    "float8": (
        lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 36).to(torch.float8_e4m3fn)}), "F8_E4M3",
    ),
    "layer": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.layers.7.mlp.up_proj.lora_{x}.weight") for x in "AB"],
        "layers.7.mlp.*0 to 1",
    ),
    "module": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.layers.1.mlp.fc1.lora_{x}.weight") for x in "AB"],
        "fc1.* not in the base",
    ),
    "norm": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.norm.lora_{x}.weight") for x in "AB"], "a norm of the",
    ),
    "embedding by lora_A": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.embed_tokens.lora_{x}.weight") for x in "AB"],
        "expected lora_embedding_A",
    ),
    "dora": (lambda t: t.update({f"{PREFIX}{UP}.lora_magnitude_vector": torch.zeros(44)}), "DoRA"),
    "lora bias": (lambda t: t.update({f"{PREFIX}{UP}.lora_B.bias": torch.zeros(44)}), "no part of a LoRA"),
    "no prefix": (lambda t: t.update({f"{UP}.lora_A.weight": torch.zeros(3, 36)}), "no part of a LoRA"),
    "twice": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.default.weight": torch.zeros(3, 36)}), "expected one of them"),
    "whole shape": (lambda t: t.update({f"{PREFIX}{Q}.weight": torch.zeros(3, 36)}), r"q_proj.*\[3, 36\]"),
    "base layer of no matrix": (
        lambda t: t.update({f"{PREFIX}{UP}.base_layer.weight": torch.zeros(3)}), "expected a matrix",
    ),
    "nan": (lambda t: t[f"{PREFIX}{UP}.lora_A.weight"].fill_(float("nan")), "NaN or infinite"),
    "infinity": (lambda t: t[f"{PREFIX}{UP}.lora_B.weight"][0].fill_(float("inf")), "3 of 132.*NaN or infinite"),
    "nothing": (lambda t: t.clear(), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(tmp_path: Path, base: Checkpoint, case: str) -> None:
    change, message = TENSORS[case]
    made = make_adapter(tmp_path / "a", base, {UP: 3})
    path = made.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises((InvalidArgumentError, UnsupportedModelError), match=message):
        opened(made, base)


def test_a_rank_above_what_the_shape_allows(tmp_path: Path, base: Checkpoint) -> None:
    made = make_adapter(tmp_path / "a", base, {"model.layers.0.self_attn.k_proj": 19})
    with pytest.raises(InvalidArgumentError, match="has rank 19; expected at most 18"):
        opened(made, base)


def test_trained_biases_are_refused_and_absent_ones_are_not(tmp_path: Path, write_model: WriteModel) -> None:
    config = tiny_config(attention_bias=True)
    base = write_model("b", config, random_weights(config, 0))
    opened(make_adapter(tmp_path / "x", base, {Q: 2}, bias="lora_only"), base)
    bias = {f"{Q}.base_layer.bias": torch.zeros(36).bfloat16()}
    made = make_adapter(tmp_path / "y", base, {Q: 2}, whole=bias, bias="lora_only")
    with pytest.raises(UnsupportedModelError, match="bias is 'lora_only'"):
        opened(made, base)


def test_folders_that_are_no_adapter(tmp_path: Path, base: Checkpoint) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 2})
    weights, config = made.folder / "adapter_model.safetensors", made.folder / "adapter_config.json"
    (made.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match="expected one of them"):
        open_fine_tune(made.folder, base)
    (made.folder / "model.safetensors").unlink()
    weights.rename(made.folder / "adapter_model.bin")
    with pytest.raises(InvalidArgumentError, match=r"adapter_model\.bin.*safetensors"):
        open_fine_tune(made.folder, base)
    (made.folder / "adapter_model.bin").rename(weights)
    config.write_text(json.dumps([]))
    with pytest.raises(FormatError, match="list; expected an object"):
        open_fine_tune(made.folder, base)
    config.unlink()
    with pytest.raises(InvalidArgumentError, match=r"without its adapter_config\.json"):
        open_fine_tune(made.folder, base)
