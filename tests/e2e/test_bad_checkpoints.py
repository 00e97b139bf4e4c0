"""Checkpoints that must be refused: each with its status and details, and nothing published."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch

from deltaserve.client.jobs import error_of_job
from deltaserve.errors import DeltaServeError, InvalidArgumentError, PreconditionError
from deltaserve.rpc.status import error_from_rpc
from deltaserve.v1 import models_pb2, models_pb2_grpc
from tests.e2e.conftest import MODELS, System

pytestmark = pytest.mark.asyncio(loop_scope="session")

Altered = Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]
QUERY = "model.layers.3.self_attn.q_proj.weight"


async def _refused(system: System, folder: Path, model: str = "refused") -> DeltaServeError:
    """Uploads and compresses; returns the error that stopped it, wherever that was. Nothing may have come of it."""
    before = {m.model for m in await system.client.models()}
    try:
        uri = await system.client.upload(folder)
        job = await system.client.create_job(model, uri, calibration_samples=4)
        error = error_of_job(await system.client.wait_for_job(job.job_id))
        assert error is not None, "the job succeeded"
    except DeltaServeError as raised:
        error = raised
    assert {m.model for m in await system.client.models()} == before
    assert not (system.store / "deltas" / model).exists()
    return error


async def test_nan_is_refused_by_name(system: System, altered: Altered) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QUERY][5, 7] = float("nan")

    error = await _refused(system, altered(poison))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert QUERY in error.message


async def test_a_wrong_shape_is_refused_with_both_shapes(system: System, altered: Altered) -> None:
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QUERY] = tensors[QUERY][:128].contiguous()

    error = await _refused(system, altered(shrink))
    assert isinstance(error, InvalidArgumentError | PreconditionError)
    assert QUERY in error.message
    assert "128" in error.message
    assert "256" in error.message


async def test_a_missing_tensor_is_refused(system: System, altered: Altered) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[QUERY]

    error = await _refused(system, altered(drop))
    assert QUERY in error.message


async def test_another_architecture_is_refused(system: System, tmp_path: Path) -> None:
    folder = tmp_path / "gpt"
    shutil.copytree(MODELS / "conj_fr", folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "GPT2LMHeadModel"))
    error = await _refused(system, folder)
    assert isinstance(error, PreconditionError)
    assert "GPT2LMHeadModel" in error.message


async def test_truncated_safetensors_are_refused(system: System, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(MODELS / "conj_fr", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    error = await _refused(system, folder)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_delta_of_another_base_is_refused(system: System, tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    shutil.copytree(MODELS / "g2p", folder)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    fingerprint = text.split('"fingerprint": "')[1][:64]
    manifest.write_text(text.replace(fingerprint, "0" * 64))
    error = await _refused(system, folder)
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION
    assert fingerprint[:8] in error.message


async def test_a_flipped_bit_in_a_packed_delta_is_refused(system: System, tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    shutil.copytree(MODELS / "g2p", folder)
    payload = folder / "delta.safetensors"
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    error = await _refused(system, folder)
    assert error.code == grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "pytorch_model.bin", "x.pt"]
)
async def test_hostile_upload_paths_are_refused(system: System, path: str) -> None:
    request = models_pb2.StartUploadRequest(
        upload_id="hostile", files=[models_pb2.UploadFile(path=path, size=1, sha256="0" * 64)]
    )
    async with grpc.aio.insecure_channel(system.stack.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await models_pb2_grpc.ModelServiceStub(channel).StartUpload(request)
    error = error_from_rpc(failed.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.field


@pytest.mark.parametrize("name", ["../up", "A", "", "a/b", "..", "x" * 64])
async def test_hostile_model_names_are_refused(system: System, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await system.client.create_job(name, str(MODELS / "conj_fr"), job_id="hostile")


@pytest.mark.parametrize(
    "uri", ["/etc", "file:///etc", "/nonexistent/model", "upload:nope", "../conj_fr", "gopher://x"]
)
async def test_sources_beyond_the_allowed_folders_are_refused(system: System, uri: str) -> None:
    with pytest.raises(DeltaServeError) as refused:
        job = await system.client.create_job("stolen", uri)
        error = error_of_job(await system.client.wait_for_job(job.job_id))
        assert error is not None
        raise error
    codes = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}
    assert refused.value.code in codes
