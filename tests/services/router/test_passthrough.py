"""ModelService through the router: a scripted compressor over a real socket sees and says exactly what it should."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from deltaserve.errors import DataLossError, InvalidArgumentError, OffsetError, UnavailableError
from deltaserve.rpc.ending import Ending
from deltaserve.rpc.servers import serving
from deltaserve.rpc.status import RemoteError, error_from_rpc
from deltaserve.v1 import inference_pb2 as ipb
from deltaserve.v1 import models_pb2 as pb
from deltaserve.v1.models_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server

from .conftest import ScriptedWorker, call_failure, connected, routing, serve, until

MIB = 1 << 20


class ScriptedCompressor(ModelServiceServicer):
    """Takes uploads into memory; `limit` is the byte at which it finds a broken checksum."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.limit = 1 << 40
        self.watching = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.remaining: float | None = None
        self.metadata: dict[str, Any] = {}
        self.slow = asyncio.Event()
        self.slow.set()

    async def UploadChunks(self, requests: Any, context: Any) -> pb.UploadChunksResponse:
        async for request in requests:
            await self.slow.wait()
            if request.offset != len(self.data):
                raise OffsetError("a gap", expected_offset=len(self.data))
            if request.offset >= self.limit:
                raise DataLossError(f"chunk at {request.offset} does not match its crc32c", path=request.path)
            self.data += request.data
        return pb.UploadChunksResponse(files=[pb.FileProgress(path="f", received=len(self.data))])

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        self.remaining = context.time_remaining()
        self.metadata = dict(context.invocation_metadata())
        await context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-last-bin", b"\x00\x01")))
        if not request.job_id:
            raise InvalidArgumentError("job_id is empty", field="job_id")
        return pb.GetJobResponse(job=pb.Job(job_id=request.job_id))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        try:
            for number in range(3):
                yield pb.WatchJobResponse(job=pb.Job(attempts=number))
            if request.job_id == "ends":
                return
            self.watching.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def GetRevision(self, request: pb.GetRevisionRequest, context: Any) -> pb.GetRevisionResponse:
        return pb.GetRevisionResponse(revision=pb.Revision(name="models/m/revisions/2", manifest_json="{}"))


@contextlib.asynccontextmanager
async def compressing(port: int = 0) -> AsyncIterator[tuple[ScriptedCompressor, str]]:
    compressor = ScriptedCompressor()  # type: ignore[abstract] # the other methods stay unimplemented
    names = [pb.DESCRIPTOR.services_by_name["ModelService"].full_name]
    register = lambda server: add_ModelServiceServicer_to_server(compressor, server)  # noqa: E731
    async with serving(f"127.0.0.1:{port}", register, names, grace_seconds=0) as host:
        yield compressor, f"127.0.0.1:{host.port}"


async def chunks(count: int, size: int = MIB) -> AsyncIterator[pb.UploadChunksRequest]:
    for number in range(count):
        yield pb.UploadChunksRequest(upload_id="u", path="f", offset=number * size, data=bytes([number % 251]) * size)


async def test_an_upload_streams_through_byte_for_byte(store: str) -> None:
    async with compressing() as (compressor, address), routing(store, [], compressor=address) as (_, client):
        answer = await client.models.UploadChunks(chunks(24), timeout=30)
    assert answer.files[0].received == len(compressor.data) == 24 * MIB
    assert all(compressor.data[n * MIB] == n and compressor.data[(n + 1) * MIB - 1] == n for n in range(24))


async def test_a_slow_compressor_slows_the_client_not_the_router(store: str) -> None:
    sent = 0

    async def counted() -> AsyncIterator[pb.UploadChunksRequest]:
        nonlocal sent
        async for chunk in chunks(100):
            sent += 1
            yield chunk

    async with compressing() as (compressor, address), routing(store, [], compressor=address) as (_, client):
        compressor.slow.clear()
        call = client.models.UploadChunks(counted(), timeout=30)
        await asyncio.sleep(1.0)
        held = sent
        await asyncio.sleep(0.3)
        assert sent == held < 60
        compressor.slow.set()
        assert (await call).files[0].received == 100 * MIB


async def test_an_error_in_the_middle_of_an_upload_arrives_intact(store: str) -> None:
    async with compressing() as (compressor, address), routing(store, [], compressor=address) as (_, client):
        compressor.limit = 5 * MIB
        call = client.models.UploadChunks(chunks(1000), timeout=30)
        ending = Ending(call)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = error_from_rpc(await ending.error(caught.value))
        assert isinstance(error, DataLossError)
        assert error.metadata == {"path": "f"}
        assert len(compressor.data) == 5 * MIB
        compressor.limit = 1 << 40
        error = await call_failure(client.models.UploadChunks(chunks(1), timeout=30))
    assert isinstance(error, OffsetError)
    assert error.metadata == {"expected_offset": str(5 * MIB)}


async def test_metadata_and_deadline_cross_both_ways(store: str) -> None:
    async with compressing() as (compressor, address), routing(store, [], compressor=address) as (_, client):
        sent = (("x-key", "v"), ("x-key-bin", b"\xff\x00"))
        call = client.models.GetJob(pb.GetJobRequest(job_id="j"), timeout=9, metadata=sent)
        assert (await call).job.job_id == "j"
        initial, trailing = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
        error = await call_failure(client.models.GetJob(pb.GetJobRequest(), timeout=9))
    assert initial["x-first"] == "1"
    assert (trailing["x-last"], trailing["x-last-bin"]) == ("2", b"\x00\x01")
    assert compressor.remaining is not None
    assert 7 < compressor.remaining < 9.1
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "job_id"
    assert "x-key" not in compressor.metadata  # of the second call
    assert compressor.cancelled.is_set() is False


async def test_a_watch_streams_and_ends(store: str) -> None:
    async with compressing() as (_, address), routing(store, [], compressor=address) as (_, client):
        call = client.models.WatchJob(pb.WatchJobRequest(job_id="ends"), timeout=9)
        assert [frame.job.attempts async for frame in call] == [0, 1, 2]


async def test_cancelling_a_watch_cancels_it_at_the_compressor(store: str) -> None:
    async with compressing() as (compressor, address), routing(store, [], compressor=address) as (_, client):
        call = client.models.WatchJob(pb.WatchJobRequest(job_id="goes-on"), timeout=60)
        await call.read()
        await compressor.watching.wait()
        call.cancel()
        await until(compressor.cancelled.is_set)


async def test_unserved_methods_keep_their_status(store: str) -> None:
    async with compressing() as (_, address), routing(store, [], compressor=address) as (_, client):
        error = await call_failure(client.models.ListJobs(pb.ListJobsRequest(), timeout=5))
    assert isinstance(error, RemoteError)
    assert error.code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_missing_compressor_is_named_and_a_returning_one_is_used(store: str) -> None:
    async with compressing() as (_, address):
        pass  # only to have a free port
    async with routing(store, [], compressor=address) as (_, client):
        error = await call_failure(client.models.GetJob(pb.GetJobRequest(job_id="j"), timeout=5))
        assert isinstance(error, UnavailableError)
        assert address in error.message
        async with compressing(int(address.rpartition(":")[2])):
            for _ in range(100):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await client.models.GetJob(pb.GetJobRequest(job_id="j"), timeout=5)
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("the router never reached the compressor again")


async def test_without_a_compressor_calls_say_so(store: str) -> None:
    async with routing(store, []) as (_, client):
        error = await call_failure(client.models.GetJob(pb.GetJobRequest(job_id="j"), timeout=5))
    assert isinstance(error, UnavailableError)
    assert "--compressor" in error.message
    assert error.retry_seconds is None


async def test_get_revision_tells_residency(store: str, worker: ScriptedWorker) -> None:
    worker.state.residency.add(worker="w0", revision="m@2", tier=ipb.TIER_HOST, bytes=7)
    worker.state.residency.add(worker="w0", revision="m@1", tier=ipb.TIER_HOST, bytes=7)
    async with (
        compressing() as (_, address),
        serve(worker) as port,
        routing(store, [f"127.0.0.1:{port}"], compressor=address) as (router, client),
    ):
        await connected(router)
        answer = await client.models.GetRevision(pb.GetRevisionRequest(name="models/m"), timeout=5)
    assert answer.revision.manifest_json == "{}"
    assert [(r.revision, r.tier) for r in answer.revision.residency] == [("m@2", ipb.TIER_HOST)]
