"""Uploads and published revisions through a real compressor on a real socket."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deltaserve import errors
from deltaserve.delta.reader import DeltaReader
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.status import error_from_status
from deltaserve.v1 import models_pb2 as pb
from services.compressor.service import compressor
from services.compressor.settings import Settings

Stored = Callable[[], dict[str, bytes]]


async def test_upload_and_publish_a_packed_delta(
    client: Any, packed_folder: Path, stored: Stored, tmp_path: Path
) -> None:
    uri = await client.upload(packed_folder)
    assert uri == "upload:u"
    await client.create_job(uri)
    jobs = await client.watch()
    assert jobs[-1].state == pb.JOB_STATE_SUCCEEDED, error_from_status(jobs[-1].error_status)
    assert jobs[-1].revision_name == "models/m/revisions/1"
    assert json.loads(jobs[-1].report_json) == {"kl": 0.5}
    DeltaReader.open(tmp_path / "store/deltas/m/1", verify=True)
    revision = (await client.stub.GetRevision(pb.GetRevisionRequest(name="models/m"))).revision
    assert revision.name == "models/m/revisions/1"
    assert revision.manifest_json.encode() == stored()["deltas/m/1/manifest.json"]
    fingerprint = json.loads(revision.manifest_json)["base"]["fingerprint"]
    base = json.loads(stored()[f"bases/{fingerprint}/base.json"])
    assert {file["path"] for file in base["files"]} >= {"model.safetensors", "config.json", "tokenizer.json"}


async def test_uploads_resume_at_any_byte(client: Any, tuned_folder: Path) -> None:
    stub = client.stub
    await stub.StartUpload(client.start_request(tuned_folder))
    data = (tuned_folder / "model.safetensors").read_bytes()

    async def broken() -> Any:
        yield client.chunk("u", "model.safetensors", 0, data[:1000])
        yield client.chunk("u", "model.safetensors", 1000, data[1000:1777])
        yield client.chunk("u", "model.safetensors", 5000, data[5000:6000])

    gap = await client.refused(stub.UploadChunks(broken()))
    assert isinstance(gap, errors.OffsetError)
    assert gap.metadata["expected_offset"] == "1777"
    call = stub.UploadChunks()
    await call.write(client.chunk("u", "model.safetensors", 1700, data[1700:2000]))
    await asyncio.sleep(0.2)
    call.cancel()
    received = {f.path: f for f in (await stub.QueryUpload(pb.QueryUploadRequest(upload_id="u"))).files}
    assert received["model.safetensors"].received == 2000
    bad = client.chunk("u", "model.safetensors", 2000, data[2000:3000])
    bad.crc32c += 1
    assert isinstance(await client.refused(stub.UploadChunks(iter([bad]))), errors.DataLossError)
    early = await client.refused(stub.CommitUpload(pb.CommitUploadRequest(upload_id="u")))
    assert isinstance(early, errors.PreconditionError)
    assert await client.upload(tuned_folder) == "upload:u"
    assert (await stub.QueryUpload(pb.QueryUploadRequest(upload_id="u"))).committed
    assert await client.upload(tuned_folder) == "upload:u"


async def test_upload_ids_limits_and_unknown_ones(settings: Settings, tuned_folder: Path, client: Any) -> None:
    stub = client.stub
    request = client.start_request(tuned_folder)
    await stub.StartUpload(request)
    request.files[0].sha256 = "0" * 64
    assert isinstance(await client.refused(stub.StartUpload(request)), errors.AlreadyExistsError)
    request.upload_id, request.files[0].size = "v", 1 << 43
    quota = await client.refused(stub.StartUpload(request))
    assert isinstance(quota, errors.QuotaError)
    assert quota.subject == "uploads"
    for call in (
        stub.QueryUpload(pb.QueryUploadRequest(upload_id="x")),
        stub.CommitUpload(pb.CommitUploadRequest(upload_id="x")),
        stub.UploadChunks(iter([client.chunk("x", "f", 0, b"")])),
        client.create_job("upload:x"),
        stub.GetJob(pb.GetJobRequest(job_id="x")),
        stub.WatchJob(pb.WatchJobRequest(job_id="x")).read(),
        stub.GetRevision(pb.GetRevisionRequest(name="models/x")),
        stub.DeleteRevision(pb.DeleteRevisionRequest(name="models/x/revisions/1")),
        stub.SetAlias(pb.SetAliasRequest(alias="a", target="x")),
        stub.PinModel(pb.PinModelRequest(model="x", pinned=True)),
    ):
        assert isinstance(await client.refused(call), errors.NotFoundError)


async def test_aliases_pins_and_deletion(client: Any, packed_folder: Path, stored: Stored) -> None:
    stub = client.stub
    uri = await client.upload(packed_folder)
    for job_id in ("j1", "j2"):
        await client.create_job(uri, job_id=job_id)
        assert (await client.watch(job_id))[-1].state == pb.JOB_STATE_SUCCEEDED
    await stub.SetAlias(pb.SetAliasRequest(alias="prod", target="m@2"))
    taken = await client.refused(stub.SetAlias(pb.SetAliasRequest(alias="m", target="m@1")))
    assert isinstance(taken, errors.AlreadyExistsError)
    assert isinstance(await client.refused(client.create_job(uri, "prod", "j3")), errors.AlreadyExistsError)
    pointed = await client.refused(stub.DeleteRevision(pb.DeleteRevisionRequest(name="models/m/revisions/2")))
    assert isinstance(pointed, errors.PreconditionError)
    await stub.SetAlias(pb.SetAliasRequest(alias="prod"))
    await stub.DeleteRevision(pb.DeleteRevisionRequest(name="models/m/revisions/2"))
    assert [key for key in stored() if key.startswith("deltas/m/2/")] == ["deltas/m/2/claim.json"]
    newest = (await stub.GetRevision(pb.GetRevisionRequest(name="models/m"))).revision
    assert newest.name == "models/m/revisions/1"
    await stub.PinModel(pb.PinModelRequest(model="m", pinned=True))
    assert json.loads(stored()["settings/pins/m/000000.json"]) == {"pinned": True}


async def test_aliases_have_versions_to_go_back_to(client: Any, packed_folder: Path, stored: Stored) -> None:
    stub = client.stub
    uri = await client.upload(packed_folder)
    for job_id in ("j1", "j2", "j3"):
        await client.create_job(uri, job_id=job_id)
        assert (await client.watch(job_id))[-1].state == pb.JOB_STATE_SUCCEEDED
    canary = [pb.AliasRoute(target="m@1", weight=9), pb.AliasRoute(target="m@2", weight=1)]
    shadow = pb.AliasShadow(target="m@3", share=0.5)
    assert (await stub.SetAlias(pb.SetAliasRequest(alias="prod", target="m@1"))).version == 1
    request = pb.SetAliasRequest(alias="prod", routes=canary, shadow=shadow, expected_version=1)
    assert (await stub.SetAlias(request)).version == 2
    assert isinstance(await client.refused(stub.SetAlias(request)), errors.PreconditionError)  # not version 1 any more
    for used in (1, 2, 3):  # by a route, another, the shadow
        name = f"models/m/revisions/{used}"
        refused = await client.refused(stub.DeleteRevision(pb.DeleteRevisionRequest(name=name)))
        assert isinstance(refused, errors.PreconditionError)
        assert refused.metadata == {"alias": "prod"}
    back = (await stub.RollbackAlias(pb.RollbackAliasRequest(alias="prod"))).version
    assert (back.number, back.restores, [r.target for r in back.routes]) == (3, 1, ["m@1"])
    assert isinstance(await client.refused(stub.RollbackAlias(pb.RollbackAliasRequest(alias="prod"))),
                      errors.PreconditionError)  # fmt: skip
    again = (await stub.RollbackAlias(pb.RollbackAliasRequest(alias="prod", version=2))).version
    assert (list(again.routes), again.shadow, again.restores) == (canary, shadow, 2)
    (told,) = (await stub.ListAliases(pb.ListAliasesRequest(history=True))).aliases
    assert [v.number for v in told.versions] == [4, 3, 2, 1]
    assert told.versions[0] == again
    assert isinstance(await client.refused(stub.ListAliases(pb.ListAliasesRequest(alias="x"))), errors.NotFoundError)

    await stub.PinModel(pb.PinModelRequest(model="m", pinned=True))
    await stub.SetAlias(pb.SetAliasRequest(alias="prod", target="m@2"))
    newest = pb.DeleteRevisionRequest(name="models/m/revisions/3")
    assert "pinned" in (await client.refused(stub.DeleteRevision(newest))).message
    for number in (3, 2):
        await stub.DeleteRevision(pb.DeleteRevisionRequest(name=f"models/m/revisions/{number}", force=True))
    gone = await client.refused(stub.RollbackAlias(pb.RollbackAliasRequest(alias="prod", version=5)))
    assert "m@2, which is not published" in gone.message
    with_both = pb.SetAliasRequest(alias="prod", target="m@1", routes=canary)
    assert isinstance(await client.refused(stub.SetAlias(with_both)), errors.InvalidArgumentError)


async def test_jobs_are_listed_newest_first_by_page(client: Any, packed_folder: Path) -> None:
    uri = await client.upload(packed_folder)
    for number in range(5):
        await client.create_job(uri, f"m{number % 2}", f"j{number}")
    first = await client.stub.ListJobs(pb.ListJobsRequest(page_size=3))
    assert [job.job_id for job in first.jobs] == ["j4", "j3", "j2"]
    rest = await client.stub.ListJobs(pb.ListJobsRequest(page_size=3, page_token=first.next_page_token))
    assert [job.job_id for job in rest.jobs] == ["j1", "j0"]
    assert not rest.next_page_token
    one = await client.stub.ListJobs(pb.ListJobsRequest(model="m1"))
    assert [job.job_id for job in one.jobs] == ["j3", "j1"]
    for bad in (pb.ListJobsRequest(page_size=9999), pb.ListJobsRequest(page_token="../x")):
        assert isinstance(await client.refused(client.stub.ListJobs(bad)), errors.InvalidArgumentError)


async def test_jobs_are_idempotent_under_their_id(client: Any, packed_folder: Path) -> None:
    uri = await client.upload(packed_folder)
    await client.create_job(uri)
    again = await client.create_job(uri)
    assert again.job_id == "j"
    assert isinstance(await client.refused(client.create_job(uri, "other")), errors.AlreadyExistsError)
    assert (await client.watch())[-1].revision_name == "models/m/revisions/1"
    await client.create_job(uri)
    newest = (await client.stub.GetRevision(pb.GetRevisionRequest(name="models/m"))).revision
    assert newest.name == "models/m/revisions/1"
    chosen = await client.create_job(uri, job_id="")
    assert chosen.job_id.startswith("m-")


async def test_health_and_one_process_a_work_folder(settings: Settings) -> None:
    async with compressor(settings) as host, edge_channel(f"127.0.0.1:{host.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="deltaserve.v1.ModelService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(errors.PreconditionError, match="another compressor"):
            async with compressor(settings):
                pass
    async with compressor(settings):
        pass
