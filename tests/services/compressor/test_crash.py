"""SIGKILL of the whole service at awkward moments: what was acknowledged is there after the restart."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from deltaserve.delta.reader import DeltaReader
from deltaserve.v1 import models_pb2 as pb

CHUNK = 16 << 10


async def test_a_kill_in_the_middle_of_an_upload(service: Any, tuned_folder: Path, stored: Callable[..., Any]) -> None:
    weights = tuned_folder / "model.safetensors"
    data, upload = weights.read_bytes(), pb.QueryUploadRequest(upload_id="u")
    await service.start()
    async with service.client() as client:
        await client.stub.StartUpload(client.start_request(tuned_folder))
        await client.send(tuned_folder, "u", {"config.json": 0})
        call = client.stub.UploadChunks()
        for offset in range(0, 8 * CHUNK, CHUNK):
            await call.write(client.chunk("u", weights.name, offset, data[offset : offset + CHUNK]))
        await asyncio.sleep(0.5)
        await service.stop(signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await call
        assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
    await service.start()
    async with service.client() as client:
        received = {f.path: f.received for f in (await client.stub.QueryUpload(upload)).files}
        assert received["config.json"] == (tuned_folder / "config.json").stat().st_size
        assert received[weights.name] >= 7 * CHUNK  # at most one chunk goes again
        assert await client.upload(tuned_folder) == "upload:u"
        await service.stop(signal.SIGKILL)
    await service.start()
    async with service.client() as client:
        assert (await client.stub.QueryUpload(upload)).committed
    assert not any(key.startswith("deltas/") for key in stored())


async def test_a_kill_in_the_middle_of_a_job(
    service: Any, tune: Callable[..., Path], stored: Callable[..., Any], tmp_path: Path
) -> None:
    """The restarted service goes on with the job by itself, and publishes one whole revision."""
    await service.start()
    async with service.client() as client:
        options = pb.CompressionOptions(group_size=32, calibration_samples=16, calibration_tokens=64)
        await client.create_job(await client.upload(tune("m")), compression=options)
        async for response in client.stub.WatchJob(pb.WatchJobRequest(job_id="j"), timeout=60):
            if response.job.progress.layers_done >= 1:
                break
        assert response.job.state == pb.JOB_STATE_RUNNING
        await service.stop(signal.SIGKILL)
    assert not any(key.startswith("deltas/") for key in stored())
    await service.start()
    async with service.client() as client:
        seen = await client.watch()
    assert seen[-1].state == pb.JOB_STATE_SUCCEEDED
    assert seen[-1].attempts == 2
    assert [key for key in stored() if key.endswith("manifest.json")] == ["deltas/m/1/manifest.json"]
    reader = DeltaReader.open(tmp_path / "store/deltas/m/1", verify=True)
    assert all(bool(torch.isfinite(reader.tensor(name).decode(torch.float32)).all()) for name in reader.names())
    await client.until_gone(tmp_path / "work/jobs/j")


async def test_a_kill_while_queued_and_a_drain(service: Any, packed_folder: Path, tmp_path: Path) -> None:
    await service.start()
    async with service.client() as client:
        uri = await client.upload(packed_folder)
        for number in range(4):
            await client.create_job(uri, f"m{number}", f"j{number}")
        await service.stop(signal.SIGKILL)
    await service.start()
    async with service.client() as client:
        for number in range(4):
            assert (await client.watch(f"j{number}"))[-1].revision_name == f"models/m{number}/revisions/1"
        assert await service.stop(signal.SIGTERM) == 0
    for number in range(4):
        DeltaReader.open(tmp_path / f"store/deltas/m{number}/1", verify=True)
