"""What cannot be compressed is refused, as a status that says what is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from google.rpc import status_pb2

from deltaserve.delta.manifest import Manifest
from deltaserve.errors import (
    BaseMismatchError,
    DeltaServeError,
    FormatError,
    InvalidArgumentError,
    UnsupportedModelError,
)
from deltaserve.rpc.status import error_from_status
from services.compressor.pipeline.spec import Spec
from tests.services.compressor.pipeline.conftest import lines, make_model, make_pair, make_spec, save, tune

Compress = Callable[..., Manifest]
ROOT = Path(__file__).resolve().parents[4]
UP = "model.layers.1.mlp.up_proj.weight"


def poisoned(folder: Path, name: str, value: float) -> Path:
    model = make_model()
    tune(model)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[5] = value
    return save(model, folder)


@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity(tmp_path: Path, compress: Compress, pair: tuple[Path, Path], name: str, value: float):
    with pytest.raises(InvalidArgumentError, match=f"{name}.* 1 of .* NaN or infinite") as caught:
        compress((pair[0], poisoned(tmp_path / "bad", name, value)))
    assert caught.value.metadata["tensor"] == name


def test_other_sizes(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    with pytest.raises(BaseMismatchError, match="intermediate_size is 64 in the fine-tune and 48"):
        compress((pair[0], save(make_model(intermediate_size=64), tmp_path / "other")))


def test_shapes_that_the_config_does_not_call_for(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    wide = save(make_model(intermediate_size=64), tmp_path / "wide")
    (wide / "config.json").write_bytes((pair[1] / "config.json").read_bytes())
    with pytest.raises(InvalidArgumentError, match=r"has shape \[64, 32\]; its config calls for \[48, 32\]"):
        compress((pair[0], wide))


def test_other_architecture(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    with pytest.raises(BaseMismatchError, match="is a Qwen3ForCausalLM; the base is a LlamaForCausalLM"):
        compress((pair[0], save(make_model("Qwen3ForCausalLM"), tmp_path / "qwen")))
    config = json.loads((pair[1] / "config.json").read_text())
    (pair[1] / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        compress(pair)


def test_pickle_and_truncated_weights(tmp_path: Path, compress: Compress):
    pair = make_pair(tmp_path)
    shard = max(pair[1].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(FormatError, match=shard.name):
        compress(pair)
    for path in pair[1].glob("*.safetensors*"):
        path.unlink()
    (pair[1] / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(InvalidArgumentError, match="safetensors"):
        compress(pair)


def test_malformed_side_files(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    with pytest.raises(FormatError, match=r"c.jsonl line 2 has keys \['words'\]"):
        compress(pair, calibration=lines(tmp_path / "c.jsonl", [{"text": "a"}, {"words": "b"}]))
    with pytest.raises(FormatError, match=r"e.jsonl row 1 has no prompt and targets"):
        compress(pair, evaluation=lines(tmp_path / "e.jsonl", [{"text": "a"}]))


def run_process(spec: Spec | dict[str, Any], folder: Path) -> tuple[int, DeltaServeError]:
    path = folder / "spec.json"
    path.write_bytes(msgspec.json.encode(spec, enc_hook=str))
    command = [sys.executable, "-m", "services.compressor.pipeline", str(path)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=120, check=False)
    status = (folder / "error.bin").read_bytes()
    assert status_pb2.Status.FromString(status).code == 3  # INVALID_ARGUMENT
    return done.returncode, error_from_status(status)


def test_the_process_leaves_the_error_as_a_status(tmp_path: Path, pair: tuple[Path, Path]):
    bad = poisoned(tmp_path / "bad", UP, float("nan"))
    code, error = run_process(make_spec((pair[0], bad), tmp_path / "work"), tmp_path / "work")
    assert code == 3
    assert isinstance(error, InvalidArgumentError)
    assert error.metadata["tensor"] == UP
    code, error = run_process({"base": 1}, tmp_path)
    assert code == 3
    assert "spec.json" in error.message
