"""Jobs that run the real pipeline: a fine-tune in, a revision out; cancelled, refused by the gate, drained."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import DrainingError, InvalidArgumentError, QualityGateError
from deltaserve.rpc.status import error_from_rpc, error_from_status
from deltaserve.v1 import models_pb2 as pb

QUICK = {"calibration_samples": 4, "calibration_tokens": 32}


def options(codec: str) -> pb.CompressionOptions:
    return pb.CompressionOptions(codec=codec, group_size=32, **QUICK)


async def test_a_folder_becomes_a_revision(client: Any, tune: Callable[..., Path], tmp_path: Path) -> None:
    folder = tune("m")
    lines = [json.dumps({"prompt": f"{n} + 1 =", "targets": [f" {n + 1}"]}) for n in range(4)]
    (folder / "test.jsonl").write_text("\n".join(lines))
    spec = {"compression": options("int4"), "evaluation_uri": "test.jsonl"}
    await client.create_job(f"file://{folder}", **spec)
    seen = await client.watch()
    job = seen[-1]
    assert job.state == pb.JOB_STATE_SUCCEEDED, error_from_status(job.error_status)
    stages = [s.progress.stage for s in seen if s.HasField("progress")]
    assert stages == sorted(stages)
    assert {pb.JOB_STAGE_COMPRESSING, pb.JOB_STAGE_PUBLISHING} <= set(stages)
    assert max(s.progress.layers_done for s in seen) == job.progress.layers_total == 2
    assert json.loads(job.report_json)
    reader = DeltaReader.open(tmp_path / "store/deltas/m/1", verify=True)
    assert reader.manifest.model == "m"
    tuned, base = Checkpoint.open(folder), Checkpoint.open(client.settings.base)
    name = "model.layers.0.mlp.up_proj.weight"
    delta = tuned.read(name).float() - base.read(name).float()
    error = (reader.tensor(name).decode(torch.float32) - delta).norm() / delta.norm()
    assert error < 0.2
    await client.until_gone(tmp_path / "work/jobs/j")


async def test_the_gate_refuses_with_the_report(client: Any, tune: Callable[..., Path], stored: Any) -> None:
    policy = pb.QualityPolicy(max_kl=1e-12, max_bits_per_param=3)
    await client.create_job(await client.upload(tune("m")), compression=options("sign1"), policy=policy)
    job = (await client.watch())[-1]
    assert job.state == pb.JOB_STATE_FAILED
    error = error_from_status(job.error_status)
    assert isinstance(error, QualityGateError), error
    attempts = json.loads(job.report_json)["allocation"]["attempts"]
    assert len(attempts) > 1
    assert all(attempt["failures"] for attempt in attempts)
    assert not any(key.startswith("deltas/") for key in stored())


async def test_a_miss_is_tried_again_with_more_bits(client: Any, tune: Callable[..., Path]) -> None:
    source = str(tune("m"))
    await client.create_job(source, job_id="once", compression=options("sign1"))
    report = json.loads((await client.watch("once"))[-1].report_json)
    assert len(report["allocation"]["attempts"]) == 1
    policy = pb.QualityPolicy(max_kl=report["quality"]["kl"] / 2)
    await client.create_job(source, compression=options("sign1"), policy=policy)
    seen = await client.watch()
    job = seen[-1]
    assert job.state == pb.JOB_STATE_SUCCEEDED, error_from_status(job.error_status)
    assert job.progress.attempt > 1
    told = [s.progress.attempt for s in seen if s.progress.stage == pb.JOB_STAGE_COMPRESSING]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (1, job.progress.attempt)
    again = json.loads(job.report_json)
    first, *_, last = again["allocation"]["attempts"]
    assert first["failures"]
    assert not last["failures"]
    assert last["bits"] > first["bits"]
    assert again["quality"]["kl"] <= policy.max_kl
    assert again["gate"]["passed"]


async def test_a_preset_is_a_budget(client: Any, tune: Callable[..., Path], tmp_path: Path) -> None:
    wanted = pb.CompressionOptions(preset="balanced", lossless=True, **QUICK)
    await client.create_job(str(tune("m")), compression=wanted)
    job = (await client.watch())[-1]
    assert job.state == pb.JOB_STATE_SUCCEEDED, error_from_status(job.error_status)
    allocation = json.loads(job.report_json)["allocation"]
    assert (allocation["preset"], allocation["budget_bits"]) == ("balanced", 2)
    sizes = DeltaReader.open(tmp_path / "store/deltas/m/1", verify=True).manifest.sizes
    assert sizes is not None
    assert 1 < 8 * sizes.delta_bytes / sizes.parameters <= 2


async def test_the_preset_exact_is_bit_for_bit(client: Any, tune: Callable[..., Path], tmp_path: Path) -> None:
    folder = tune("m")
    await client.create_job(str(folder), compression=pb.CompressionOptions(preset="exact", **QUICK))
    job = (await client.watch())[-1]
    assert job.state == pb.JOB_STATE_SUCCEEDED, error_from_status(job.error_status)
    merged = merged_state_dict(Checkpoint.open(client.settings.base), DeltaReader.open(tmp_path / "store/deltas/m/1"))
    tuned = Checkpoint.open(folder)
    assert merged.keys() == tuned.tensors.keys()
    assert all(torch.equal(merged[name], tuned.read(name).to(merged[name].dtype)) for name in merged)


async def test_options_that_contradict_each_other_make_no_job(client: Any, tune: Callable[..., Path]) -> None:
    both = pb.CompressionOptions(preset="tiny", bits_per_param=3)
    error = await client.refused(client.create_job(str(tune("m")), compression=both))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "spec.compression.bits_per_param"
    assert "preset and bits_per_param are set" in error.message
    assert not (await client.stub.ListJobs(pb.ListJobsRequest())).jobs


async def test_cancelling_ends_the_process_and_leaves_nothing(
    client: Any, tune: Callable[..., Path], stored: Any, tmp_path: Path
) -> None:
    await client.create_job(str(tune("m")), compression=options("int4"))
    async with asyncio.timeout(60):
        while not _pipelines(os.getpid()):
            await asyncio.sleep(0.05)
    cancelled = await client.stub.CancelJob(pb.CancelJobRequest(job_id="j"))
    assert cancelled.job.state == pb.JOB_STATE_CANCELLED
    assert not _pipelines(os.getpid())
    assert not any(key.startswith("deltas/") for key in stored())
    assert not (tmp_path / "work/jobs/j").exists()
    again = await client.stub.CancelJob(pb.CancelJobRequest(job_id="j"))
    assert again.job.state == pb.JOB_STATE_CANCELLED


async def test_a_drain_gives_the_job_back_and_it_goes_on_after_the_restart(
    service: Any, tune: Callable[..., Path]
) -> None:
    await service.start()
    async with service.client() as client:
        await client.create_job(str(tune("m")), compression=options("int2"))
        call = client.stub.WatchJob(pb.WatchJobRequest(job_id="j"))
        async for response in call:
            if response.job.progress.stage == pb.JOB_STAGE_COMPRESSING:
                break
        assert await service.stop(signal.SIGTERM) == 0
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in call:
                pass
        assert isinstance(error_from_rpc(ended.value), DrainingError)
    await service.start()
    async with service.client() as client:
        seen = await client.watch()
    assert seen[-1].state == pb.JOB_STATE_SUCCEEDED, error_from_status(seen[-1].error_status)
    assert seen[-1].attempts == 2


async def test_the_pipeline_dies_with_the_service(service: Any, tune: Callable[..., Path]) -> None:
    await service.start()
    async with service.client() as client:
        await client.create_job(str(tune("m")), compression=options("int2"))
        async with asyncio.timeout(60):
            while not (children := _pipelines(service.pid)):
                await asyncio.sleep(0.05)
        await service.stop(signal.SIGKILL)
    gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
    assert gone
    assert not alive


def _pipelines(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children()
    return [c for c in children if "services.compressor.jobs.child" in " ".join(c.cmdline())]
