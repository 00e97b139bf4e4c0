"""Every bad input gets its status and details, and nothing is lost or published."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.rpc import error_details_pb2, status_pb2

from deltaserve import errors
from deltaserve.rpc.status import DETAILS_KEY, error_from_rpc, error_from_status
from deltaserve.v1 import models_pb2 as pb

Stored = Callable[[], dict[str, bytes]]
Tune = Callable[..., Path]

EMBEDDING = "model.embed_tokens.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def _nothing_published(stored: Stored) -> Any:
    yield
    assert [key for key in stored() if key.startswith("deltas/")] == []


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_PROJ][3, 4] = float("nan")


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][0] = float("inf")


def narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_PROJ] = tensors[Q_PROJ][:, :-16].contiguous()


def lacking(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[Q_PROJ]


def integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_PROJ] = tensors[Q_PROJ].to(torch.int32)


async def test_pickle_is_refused_by_name(client: Any, tune: Tune) -> None:
    folder = tune("m")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": 1}))
    error = await client.refused(client.stub.StartUpload(client.start_request(folder)))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == "files"
    assert "pytorch_model.bin" in error.message
    assert "safetensors" in error.message
    assert isinstance(
        await client.refused(client.stub.QueryUpload(pb.QueryUploadRequest(upload_id="u"))), errors.NotFoundError
    )


async def test_a_folder_with_only_pickled_weights(client: Any, tune: Tune) -> None:
    folder = tune("m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = await client.refused(client.create_job(str(folder)))
    assert isinstance(error, errors.InvalidArgumentError)
    assert "pytorch_model.bin" in error.message


@pytest.mark.parametrize("path", ["../../evil", "/etc/passwd", "a/../../b", "..", "x\0y"])
async def test_paths_that_leave_the_upload(client: Any, tuned_folder: Path, tmp_path: Path, path: str) -> None:
    request = client.start_request(tuned_folder)
    request.files.add(path=path, size=1, sha256="0" * 64)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await client.stub.StartUpload(request)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = error_from_rpc(failed.value)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == f"files[{len(request.files) - 1}].path"
    details = dict(failed.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(details[DETAILS_KEY])
    assert any(detail.Is(error_details_pb2.BadRequest.DESCRIPTOR) for detail in status.details)
    assert not list((tmp_path / "work/uploads").iterdir())


async def test_chunks_for_paths_outside(client: Any, tuned_folder: Path) -> None:
    await client.stub.StartUpload(client.start_request(tuned_folder))
    for path in ("../upload.json", "../../identity", "/etc/passwd"):
        error = await client.refused(client.stub.UploadChunks(iter([client.chunk("u", path, 0, b"x")])))
        assert isinstance(error, errors.NotFoundError)
    error = await client.refused(client.stub.UploadChunks(iter([client.chunk("../u", "config.json", 0, b"x")])))
    assert isinstance(error, errors.InvalidArgumentError)


@pytest.mark.parametrize("name", ["../m", "m/../../x", "M", "", "m@1", ".m"])
async def test_names_that_are_no_names(client: Any, tune: Tune, name: str) -> None:
    folder = str(tune("m"))
    error = await client.refused(client.create_job(folder, name))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == "spec.model"
    if name:
        assert isinstance(await client.refused(client.create_job(folder, "m", name)), errors.InvalidArgumentError)


async def test_sources_outside_the_allowed_folders(client: Any, tuned_folder: Path, tune: Tune, tmp_path: Path) -> None:
    folder = tune("m")
    (folder / "link.json").symlink_to("/etc/hostname")
    (tmp_path / "allowed" / "out").symlink_to(tuned_folder)
    outside = [
        str(tuned_folder), "/etc", f"file://{tuned_folder}", f"{folder}/../../../..", "relative", "s3://bucket/x",
        "http://127.0.0.1:1/x", "file://host/etc", "", str(folder), str(tmp_path / "allowed" / "out"),
    ]  # fmt: skip
    for uri in outside:
        error = await client.refused(client.create_job(uri))
        assert isinstance(error, errors.InvalidArgumentError), uri
        assert error.field == "source_uri"
    missing = await client.refused(client.create_job(str(tmp_path / "allowed" / "nope")))
    assert isinstance(missing, errors.NotFoundError)


@pytest.mark.parametrize(
    ("change", "found"),
    [(narrow, "[64, 48]"), (lacking, "missing 1"), (integers, "I32")],
)
async def test_wrong_tensors_before_any_byte(client: Any, tune: Tune, change: Any, found: str) -> None:
    folder = tune("m", change)
    error = await client.refused(client.stub.StartUpload(client.start_request(folder)))
    assert isinstance(error, errors.InvalidArgumentError)
    assert found in error.message
    assert Q_PROJ in error.message
    assert isinstance(await client.refused(client.create_job(str(folder))), errors.InvalidArgumentError)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, errors.BaseMismatchError),
        ({"architectures": ["GPT2LMHeadModel"]}, errors.UnsupportedModelError),
        ({"rms_norm_eps": 0.1}, errors.BaseMismatchError),
        ({"num_attention_heads": 8, "head_dim": 8}, errors.BaseMismatchError),
    ],
)
async def test_a_fine_tune_of_another_base(client: Any, tune: Tune, changes: dict[str, Any], kind: type) -> None:
    folder = tune("m")
    config = json.loads((folder / "config.json").read_bytes()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    error = await client.refused(client.stub.StartUpload(client.start_request(folder)))
    assert isinstance(error, kind)
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(await client.refused(client.create_job(str(folder))), kind)


@pytest.mark.parametrize("change", [nan, infinite])
async def test_values_that_are_not_finite(client: Any, tune: Tune, change: Any) -> None:
    folder = tune("m", change)
    await client.stub.StartUpload(client.start_request(folder))
    error = await client.refused(client.upload(folder))
    assert isinstance(error, errors.InvalidArgumentError)
    assert "1 of" in error.message
    assert error.metadata["tensor"] in {Q_PROJ, "model.norm.weight"}
    kept = await client.stub.QueryUpload(pb.QueryUploadRequest(upload_id="u"))
    assert not kept.committed
    assert all(file.received == file.size for file in kept.files)
    assert isinstance(await client.refused(client.create_job("upload:u")), errors.PreconditionError)
    await client.create_job(str(folder))
    job = (await client.watch())[-1]
    assert job.state == pb.JOB_STATE_FAILED
    assert error_from_status(job.error_status).metadata["tensor"] == error.metadata["tensor"]


async def test_truncated_safetensors(client: Any, tune: Tune) -> None:
    folder = tune("m")
    whole = client.start_request(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    cut = client.start_request_of(folder, whole.tensors)
    await client.stub.StartUpload(cut)
    await client.send(folder, "u", {file.path: 0 for file in cut.files})
    error = await client.refused(client.stub.CommitUpload(pb.CommitUploadRequest(upload_id="u")))
    assert isinstance(error, errors.FormatError)
    assert "model.safetensors" in error.message
    assert isinstance(await client.refused(client.create_job(str(folder))), errors.FormatError)


async def test_contents_other_than_declared(client: Any, tune: Tune, tuned_folder: Path) -> None:
    request = client.start_request(tuned_folder)
    next(t for t in request.tensors if t.name == Q_PROJ).dtype = "BF16"
    await client.stub.StartUpload(request)
    await client.send(tuned_folder, "u", {file.path: 0 for file in request.files})
    error = await client.refused(client.stub.CommitUpload(pb.CommitUploadRequest(upload_id="u")))
    assert isinstance(error, errors.FormatError)
    assert Q_PROJ in error.message
    config = json.loads((tuned_folder / "config.json").read_bytes()) | {"pad_token_id": 9}
    other = client.start_request(tuned_folder, "v", config_json=json.dumps(config).encode())
    await client.stub.StartUpload(other)
    await client.send(tuned_folder, "v", {file.path: 0 for file in other.files})
    error = await client.refused(client.stub.CommitUpload(pb.CommitUploadRequest(upload_id="v")))
    assert isinstance(error, errors.FormatError)
    assert error.field == "config_json"


async def test_bytes_other_than_declared_are_dropped_and_sent_again(client: Any, tuned_folder: Path) -> None:
    request = client.start_request(tuned_folder)
    await client.stub.StartUpload(request)
    data = (tuned_folder / "config.json").read_bytes()
    await client.stub.UploadChunks(iter([client.chunk("u", "config.json", 0, b" " * len(data))]))
    error = await client.refused(client.upload(tuned_folder))
    assert isinstance(error, errors.DataLossError)
    assert "config.json" in error.message
    left = {f.path: f.received for f in (await client.stub.QueryUpload(pb.QueryUploadRequest(upload_id="u"))).files}
    assert left["config.json"] == 0
    assert left["model.safetensors"] == (tuned_folder / "model.safetensors").stat().st_size
    assert await client.upload(tuned_folder) == "upload:u"


async def test_packed_deltas_of_another_base_and_damaged_ones(client: Any, packed_folder: Path, tmp_path: Path) -> None:
    def variant(name: str) -> Path:
        return Path(shutil.copytree(packed_folder, tmp_path / name))

    foreign = variant("foreign")
    manifest = json.loads((foreign / "manifest.json").read_bytes())
    manifest["base"]["fingerprint"] = "0" * 64
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    assert isinstance(await client.refused(client.upload(foreign, "a")), errors.BaseMismatchError)

    torn = variant("torn")
    (torn / "delta.safetensors").write_bytes((packed_folder / "delta.safetensors").read_bytes()[:-10])
    error = await client.refused(client.upload(torn, "b"))
    assert isinstance(error, errors.DataLossError | errors.FormatError)

    nonsense = variant("nonsense")
    (nonsense / "manifest.json").write_text('{"format": "deltaserve-delta", "version": 1}')
    assert isinstance(await client.refused(client.upload(nonsense, "c")), errors.FormatError)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"compression": pb.CompressionOptions(codec="int9")}, "spec.compression.codec"),
        ({"compression": pb.CompressionOptions(embedding_codec="sparse24_int4")}, "spec.compression.embedding_codec"),
        ({"compression": pb.CompressionOptions(preset="huge")}, "spec.compression.preset"),
        ({"compression": pb.CompressionOptions(preset="tiny", codec="int4")}, "spec.compression.preset"),
        ({"compression": pb.CompressionOptions(bits_per_param=2, preset="tiny")}, "spec.compression.bits_per_param"),
        ({"compression": pb.CompressionOptions(smallest=True, codec="int4")}, "spec.compression.smallest"),
        ({"compression": pb.CompressionOptions(smallest=True)}, "spec.compression.smallest"),
        ({"compression": pb.CompressionOptions(bits_per_param=0)}, "spec.compression.bits_per_param"),
        ({"compression": pb.CompressionOptions(bits_per_param=math.nan)}, "spec.compression.bits_per_param"),
        ({"compression": pb.CompressionOptions(bits_per_param=math.inf)}, "spec.compression.bits_per_param"),
        ({"compression": pb.CompressionOptions(group_size=17)}, "spec.compression.group_size"),
        ({"compression": pb.CompressionOptions(calibration_samples=0)}, "spec.compression.calibration_samples"),
        ({"compression": pb.CompressionOptions(calibration_tokens=1 << 30)}, "spec.compression.calibration_tokens"),
        ({"policy": pb.QualityPolicy(max_kl=-1)}, "spec.policy.max_kl"),
        ({"policy": pb.QualityPolicy(min_agreement=float("nan"))}, "spec.policy.min_agreement"),
        ({"policy": pb.QualityPolicy(min_agreement=1.5)}, "spec.policy.min_agreement"),
        ({"calibration_uri": "../x.jsonl"}, "spec.calibration_uri"),
        ({"evaluation_uri": "/etc/passwd"}, "spec.evaluation_uri"),
    ],
)
async def test_specs(client: Any, tune: Tune, spec: dict[str, Any], field: str) -> None:
    error = await client.refused(client.create_job(str(tune("m")), **spec))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.field == field


async def test_side_files_that_are_not_there(client: Any, tune: Tune) -> None:
    error = await client.refused(client.create_job(str(tune("m")), evaluation_uri="test.jsonl"))
    assert isinstance(error, errors.NotFoundError)
