"""Jobs, aliases and workers through the async client."""

from typing import Any

import grpc
import pytest

from deltaserve import errors
from deltaserve.client import AsyncClient, error_of_job
from deltaserve.v1 import inference_pb2
from deltaserve.v1 import models_pb2 as pb


async def test_a_job_is_created_with_its_options(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        job = await client.create_job("french", "upload:u", codec="sign1", max_kl=0.1, calibration_uri="train.jsonl")
        again = await client.create_job("french", "upload:u", job_id=job.job_id)
        with pytest.raises(errors.InvalidArgumentError):
            await client.create_job("french", "upload:u", group_size=-1)
    assert job.job_id.startswith("french-")
    assert again.spec == job.spec
    assert (job.spec.compression.codec, job.spec.policy.max_kl) == ("sign1", 0.1)
    assert not job.spec.policy.HasField("min_agreement")
    assert job.spec.calibration_uri == "train.jsonl"


async def test_sizes_are_asked_for_by_name_or_number(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        named = await client.create_job("french", "upload:u", preset="tiny", lossless=True, job_id="j1")
        counted = await client.create_job("french", "upload:u", bits_per_param=2.5, job_id="j2")
        least = await client.create_job("french", "upload:u", smallest=True, max_kl=0.1, job_id="j3")
    assert named.spec.compression == pb.CompressionOptions(preset="tiny", lossless=True)
    assert counted.spec.compression == pb.CompressionOptions(bits_per_param=2.5)
    assert least.spec.compression == pb.CompressionOptions(smallest=True)


async def test_a_watch_tells_every_change_and_outlives_a_restart(peer: Any) -> None:
    peer.models.watch_breaks = 2
    peer.models.states = [pb.Job(state=pb.JOB_STATE_RUNNING), pb.Job(state=pb.JOB_STATE_SUCCEEDED, revision_name="r")]
    seen = []
    async with AsyncClient(peer.address) as client:
        await client.create_job("french", "upload:u", job_id="j1")
        job = await client.wait_for_job("j1", lambda job: seen.append(job.state))
        with pytest.raises(errors.NotFoundError, match="j2"):
            await client.wait_for_job("j2")
    assert seen == [1, 1, 1, pb.JOB_STATE_RUNNING, pb.JOB_STATE_SUCCEEDED]
    assert (job.revision_name, error_of_job(job)) == ("r", None)


async def test_a_watch_that_ends_early_is_opened_again(peer: Any) -> None:
    async with AsyncClient(peer.address, patience=0.1) as client:
        await client.create_job("french", "upload:u", job_id="j1")
        with pytest.raises(errors.InternalError, match="ended before the job"):
            await client.wait_for_job("j1")


async def test_why_a_job_failed(peer: Any) -> None:
    gate = errors.QualityGateError("KL 0.2 exceeds 0.1", kl=0.2)
    failed = pb.Job(job_id="j", state=pb.JOB_STATE_FAILED, error_status=gate.to_status().SerializeToString())
    error = error_of_job(failed)
    assert isinstance(error, errors.QualityGateError)
    assert error.metadata == {"kl": "0.2"}
    assert isinstance(error_of_job(pb.Job(state=pb.JOB_STATE_FAILED)), errors.InternalError)
    async with AsyncClient(peer.address) as client:
        await client.create_job("french", "upload:u", job_id="j1")
        cancelled = error_of_job(await client.cancel_job("j1"))
        assert cancelled is not None
        assert cancelled.code == grpc.StatusCode.CANCELLED
        assert [job.job_id for job in await client.jobs()] == ["j1"]
        assert (await client.job("j1")).state == pb.JOB_STATE_CANCELLED


async def test_settings_and_workers(peer: Any) -> None:
    async with AsyncClient(peer.address) as client:
        await client.set_alias("fr", "french@2")
        await client.pin("french")
        await client.delete_revision("french", "1")
        await client.drain_worker("w1")
        await client.place("french", inference_pb2.TIER_DEVICE)
        assert (await client.revision("french")).name == "models/french"
        assert (await client.revision("french", "2")).name == "models/french/revisions/2"
        assert [worker.worker for worker in await client.workers()] == ["w1"]
        assert list((await client.tokenize("french", "a b")).pieces) == ["a", "b"]
    alias, pin, delete = peer.models.settings
    assert (alias.alias, alias.target, pin.pinned, delete.name) == ("fr", "french@2", True, "models/french/revisions/1")
    assert [type(order).__name__ for order in peer.admin.orders] == ["DrainWorkerRequest", "PlaceRevisionRequest"]
