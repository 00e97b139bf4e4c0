"""LoRA adapters as uploads and as source URIs, over a real socket."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaserve import errors
from deltaserve.client.folder import plan_upload
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from deltaserve.rpc.status import error_from_status
from deltaserve.v1 import models_pb2 as pb
from tests.deltaserve.delta.adapters import ALL_LINEARS, PREFIX, Made, linears, make_adapter

UP = "model.layers.1.mlp.up_proj"
Adapt = Callable[..., Made]


@pytest.fixture
def adapt(base_folder: Path, tmp_path: Path) -> Adapt:
    """Writes an adapter below the folder that the test's compressor may read: adapt(ranks, ...)."""
    return lambda ranks, **more: make_adapter(tmp_path / "allowed" / "a", Checkpoint.open(base_folder), ranks, **more)


async def start(client: Any, folder: Path) -> pb.StartUploadRequest:
    """Declares an adapter as the SDK does."""
    request = plan_upload(folder).request
    request.upload_id = "u"
    await client.stub.StartUpload(request)
    return request


async def commit(client: Any, folder: Path, request: pb.StartUploadRequest) -> str:
    """Sends all files and closes the upload; returns its source URI."""
    await client.send(folder, "u", {file.path: 0 for file in request.files})
    return str((await client.stub.CommitUpload(pb.CommitUploadRequest(upload_id="u"))).source_uri)


@pytest.mark.parametrize("uploaded", [True, False])
async def test_an_adapter_becomes_a_revision(client: Any, adapt: Adapt, tmp_path: Path, uploaded: bool) -> None:
    base = Checkpoint.open(client.settings.base)
    made = adapt(dict.fromkeys(linears(base, *ALL_LINEARS), 4))
    source = await commit(client, made.folder, await start(client, made.folder)) if uploaded else str(made.folder)
    policy = pb.QualityPolicy(max_kl=1e-6, min_agreement=1.0)
    quick = pb.CompressionOptions(codec="sign1", calibration_samples=4, calibration_tokens=32)
    await client.create_job(source, compression=quick, policy=policy)
    job = (await client.watch())[-1]
    assert job.state == pb.JOB_STATE_SUCCEEDED, error_from_status(job.error_status)
    reader = DeltaReader.open(tmp_path / "store/deltas/m/1", verify=True)
    for name, weights in merged_state_dict(base, reader).items():
        torch.testing.assert_close(weights, made.tuned[name], atol=1e-6, rtol=1e-6)
    assert {entry.codec for entry in reader.manifest.tensors} == {"lowrank", "same"}
    own = (made.folder / "adapter_model.safetensors").stat().st_size
    assert reader.manifest.sizes.by_class["linear"].delta_bytes < own < reader.manifest.sizes.checkpoint_bytes


REFUSED: list[tuple[dict[str, Any], type[errors.DeltaServeError], str]] = [
    ({"use_dora": True}, errors.UnsupportedModelError, "use_dora"),
    ({"peft_type": "LOHA"}, errors.UnsupportedModelError, "LOHA"),
    ({"rank_pattern": {}, "r": 5}, errors.InvalidArgumentError, "rank 5"),
    ({"lora_alpha": "many"}, errors.FormatError, "lora_alpha"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED)
async def test_refused_before_any_byte_and_before_any_job(
    client: Any, adapt: Adapt, stored: Any, changes: dict[str, Any], kind: type, message: str
) -> None:
    made = adapt({UP: 4})
    made.change(**changes)
    request = plan_upload(made.folder).request
    for call in (client.stub.StartUpload(request), client.create_job(str(made.folder))):
        error = await client.refused(call)
        assert isinstance(error, kind)
        assert message in error.message
    assert not [key for key in stored() if key.startswith("jobs/")]


async def test_a_module_that_the_base_lacks(client: Any, adapt: Adapt) -> None:
    made = adapt({UP: 4})
    path = made.folder / "adapter_model.safetensors"
    save_file({name.replace("layers.1.", "layers.2."): values for name, values in load_file(path).items()}, path)
    error = await client.refused(client.stub.StartUpload(plan_upload(made.folder).request))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == "tensors"
    assert "layers are 0 to 1" in error.message


async def test_values_that_are_not_finite(client: Any, adapt: Adapt) -> None:
    made = adapt({UP: 4})
    path = made.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"{PREFIX}{UP}.lora_A.weight"][1, 2] = float("nan")
    save_file(tensors, path)
    error = await client.refused(commit(client, made.folder, await start(client, made.folder)))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.metadata["tensor"] == f"{PREFIX}{UP}.lora_A.weight"


async def test_contents_other_than_declared(client: Any, adapt: Adapt) -> None:
    made = adapt({UP: 4})
    request = plan_upload(made.folder).request
    request.upload_id = "u"
    config = json.loads(request.config_json)
    request.config_json = json.dumps(config | {"lora_alpha": 2}).encode()
    await client.stub.StartUpload(request)
    error = await client.refused(commit(client, made.folder, request))
    assert isinstance(error, errors.FormatError)
    assert "adapter_config.json differs" in error.message


async def test_pickled_adapters_are_refused_by_name(client: Any, adapt: Adapt) -> None:
    made = adapt({UP: 4})
    request = plan_upload(made.folder).request
    next(file for file in request.files if file.path.startswith("adapter_model")).path = "adapter_model.bin"
    error = await client.refused(client.stub.StartUpload(request))
    assert isinstance(error, errors.InvalidArgumentError)
    assert "adapter_model.bin" in error.message
    (made.folder / "adapter_model.safetensors").rename(made.folder / "adapter_model.bin")
    error = await client.refused(client.create_job(str(made.folder)))
    assert isinstance(error, errors.InvalidArgumentError)
    assert "adapter_model.bin" in error.message
