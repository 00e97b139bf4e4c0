"""What of a folder is uploaded, and which folders are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deltaserve.client.folder import find_files, plan_upload
from deltaserve.errors import FormatError, InvalidArgumentError


def test_the_id_follows_the_contents(checkpoint: Path) -> None:
    first = plan_upload(checkpoint).request.upload_id
    assert plan_upload(checkpoint).request.upload_id == first
    (checkpoint / "tokenizer.json").write_text("{ }")
    assert plan_upload(checkpoint).request.upload_id != first


def test_unrelated_files_stay(checkpoint: Path) -> None:
    assert sorted(find_files(checkpoint)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_shards_come_with_their_index(
    checkpoint: Path, make_safetensors: Callable[[Path, dict[str, list[int]]], None]
) -> None:
    (checkpoint / "model.safetensors").unlink()
    shards = {f"model-0000{i}-of-00002.safetensors": f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 2)}
    for file, tensor in shards.items():
        make_safetensors(checkpoint / file, {tensor: [4, 4]})
    index = {"weight_map": {tensor: file for file, tensor in shards.items()}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    make_safetensors(checkpoint / "consolidated.safetensors", {"x": [4]})
    assert sorted(find_files(checkpoint)) == sorted(
        ["config.json", *shards, "model.safetensors.index.json", "tokenizer.json"]
    )


def test_pickled_weights_are_refused_by_name(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(InvalidArgumentError, match=r"pytorch_model\.bin.*safetensors"):
        find_files(checkpoint)


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        plan_upload(checkpoint)


def test_what_is_not_there_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="not a folder"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(InvalidArgumentError, match=r"neither config\.json"):
        find_files(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"no file .*eval\.jsonl"):
        find_files(checkpoint, [tmp_path / "eval.jsonl"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match="rename one"):
        find_files(checkpoint, [tmp_path / "config.json"])
    with pytest.raises(FormatError, match="manifest"):
        (tmp_path / "manifest.json").write_text("{}")
        find_files(tmp_path)


def test_an_adapter_goes_without_the_base_s_config(
    checkpoint: Path, make_safetensors: Callable[[Path, dict[str, list[int]]], None]
) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    (checkpoint / "optimizer.pt").write_bytes(b"pickle")
    (checkpoint / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidArgumentError, match=r"adapter_model\.bin"):
        find_files(checkpoint)
    make_safetensors(checkpoint / "adapter_model.safetensors", {"base_model.model.lm_head.lora_A.weight": [2, 4]})
    wanted = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"]
    assert sorted(find_files(checkpoint)) == wanted
    request = plan_upload(checkpoint).request
    assert request.config_json == b'{"peft_type": "LORA"}'
    assert [(t.name, list(t.shape)) for t in request.tensors] == [("base_model.model.lm_head.lora_A.weight", [2, 4])]
    make_safetensors(checkpoint / "model.safetensors", {"lm_head.weight": [2]})
    with pytest.raises(InvalidArgumentError, match="expected one of them"):
        find_files(checkpoint)
