"""Checkpoint folders: one file, shards, side files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import classify
from deltaserve.delta.headers import INDEX_FILE
from deltaserve.errors import DataLossError, FormatError, InvalidArgumentError, UnsupportedModelError

from .conftest import WriteModel, random_weights, tiny_config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_reads_every_tensor_as_stored(write_model: WriteModel, dtype: torch.dtype) -> None:
    weights = random_weights(tiny_config(), 0)
    checkpoint = write_model("m", tiny_config(), weights, dtype)
    assert set(checkpoint.tensors) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(checkpoint.read(name), weight.to(dtype))
        checkpoint.check_finite(name)
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert set(checkpoint.side_files()) == {"config.json", "tokenizer.json"}


def test_reads_shards(tmp_path: Path) -> None:
    weights = random_weights(tiny_config(), 0)
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.read(name), weights[name]) for name in weights)


def test_tied_is_what_config_and_tensors_say_together(write_model: WriteModel) -> None:
    tied, untied = tiny_config(), tiny_config(tie_word_embeddings=False)
    assert write_model("tied", tied, random_weights(tied, 0)).tied
    assert not write_model("untied", untied, random_weights(untied, 0)).tied
    assert not write_model("both", tied, random_weights(untied, 0)).tied


def test_derived_caches_are_ignored(write_model: WriteModel) -> None:
    cache = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    checkpoint = write_model("m", tiny_config(), random_weights(tiny_config(), 0) | cache)
    assert not any("inv_freq" in name for name in checkpoint.tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_counts_bad_values(write_model: WriteModel, value: float) -> None:
    weights = random_weights(tiny_config(), 0)
    weights["model.norm.weight"][[3, 5]] = value
    with pytest.raises(InvalidArgumentError, match=r"'model\.norm\.weight' has 2 of 36"):
        write_model("m", tiny_config(), weights).check_finite("model.norm.weight")


def test_a_file_that_shrank_is_data_loss(write_model: WriteModel) -> None:
    checkpoint = write_model("m", tiny_config(), random_weights(tiny_config(), 0))
    last = max(checkpoint.tensors.values(), key=lambda header: header.end)
    with last.file.open("rb+") as file:
        file.truncate(last.end - 1)
    with pytest.raises(DataLossError, match="the file changed"):
        checkpoint.read(last.name)


def test_unknown_tensor(write_model: WriteModel) -> None:
    with pytest.raises(InvalidArgumentError, match="no tensor 'x'"):
        write_model("m", tiny_config(), random_weights(tiny_config(), 0)).read("x")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_malformed_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"config\.json"):
        Checkpoint.open(tmp_path)


def test_missing_and_oversized_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(FormatError, match="at most"):
        Checkpoint.open(tmp_path)


def test_unsupported_architecture_is_named(write_model: WriteModel) -> None:
    checkpoint = write_model("m", tiny_config(architectures=["GPT2LMHeadModel"]), {"a": torch.zeros(1)})
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        _ = checkpoint.architecture


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("model.embed_tokens.weight", (5, 4), "embedding"),
        ("lm_head.weight", (5, 4), "lm_head"),
        ("model.norm.weight", (4,), "norm"),
        ("model.layers.3.self_attn.q_norm.weight", (4,), "norm"),
        ("model.layers.3.self_attn.q_proj.weight", (4, 4), "linear"),
        ("model.layers.3.mlp.down_proj.weight", (4, 4), "linear"),
        ("model.layers.3.self_attn.q_proj.bias", (4,), "bias"),
        ("model.layers.3.self_attn.q_proj.weight", (4,), "other"),
        ("score.weight", (2, 4), "other"),
    ],
)
def test_classes(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert classify(name, shape) == kind
