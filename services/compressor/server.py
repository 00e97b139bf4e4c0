# ruff: noqa: N802, ARG002 - names and signatures are gRPC's
"""ModelService: translates between its protos and the compressor's parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from deltaserve import telemetry
from deltaserve.errors import DrainingError, InvalidArgumentError
from deltaserve.names import check_name
from deltaserve.v1 import models_pb2 as pb
from deltaserve.v1 import models_pb2_grpc as rpc
from services.compressor import translate
from services.compressor.base import Base
from services.compressor.jobs.board import JobBoard
from services.compressor.jobs.intake import Intake
from services.compressor.jobs.runner import JobRunner
from services.compressor.metrics import CompressorMetrics
from services.compressor.revisions import Revisions
from services.compressor.sources import UPLOAD_SCHEME
from services.compressor.uploads.inspection import check_declared, check_upload
from services.compressor.uploads.upload import Upload
from services.compressor.uploads.uploads import Uploads

log = logging.getLogger(__name__)

SERVICE = "deltaserve.v1.ModelService"
CHUNK_BYTES = 1 << 20  # preferred; MAX_CHUNK_BYTES is the limit
_PAGE, _MAX_PAGE = 100, 1000

Context = Any  # grpc.aio.ServicerContext is generic in its stubs only


@dataclass
class ModelServicer(rpc.ModelServiceServicer):
    """The compressor's one service. What touches the disk runs in threads."""

    base: Base
    uploads: Uploads
    intake: Intake
    board: JobBoard
    runner: JobRunner
    revisions: Revisions
    metrics: CompressorMetrics
    draining: bool = False
    _commits: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def StartUpload(self, request: pb.StartUploadRequest, context: Context) -> pb.StartUploadResponse:
        """See models.proto."""
        self._check_open()

        def start() -> list[pb.FileProgress]:
            declaration = translate.declaration_of(request)
            check_declared(self.base, declaration)
            return translate.progress_of(self.uploads.start(declaration))

        return pb.StartUploadResponse(files=await asyncio.to_thread(start), chunk_bytes=CHUNK_BYTES)

    async def UploadChunks(
        self, request_iterator: AsyncIterator[pb.UploadChunksRequest], context: Context
    ) -> pb.UploadChunksResponse:
        """See models.proto."""
        upload: Upload | None = None
        files: list[pb.FileProgress] = []
        try:
            async for chunk in request_iterator:
                self._check_open()
                if upload is None:
                    upload = await asyncio.to_thread(self.uploads.get, chunk.upload_id)
                elif chunk.upload_id not in {"", upload.declaration.upload_id}:
                    raise InvalidArgumentError("a call may only carry chunks of one upload", field="upload_id")
                self.metrics.uploaded(len(chunk.data))
                await asyncio.to_thread(upload.append, chunk.path, chunk.offset, chunk.data, chunk.crc32c)
        finally:
            if upload is not None:  # what came before a failing chunk is kept
                files = await asyncio.shield(asyncio.to_thread(translate.progress_of, upload))
        if upload is None:
            raise InvalidArgumentError("the call carried no chunk", field="upload_id")
        return pb.UploadChunksResponse(files=files)

    async def QueryUpload(self, request: pb.QueryUploadRequest, context: Context) -> pb.QueryUploadResponse:
        """See models.proto."""
        upload = await asyncio.to_thread(self.uploads.get, request.upload_id)
        files = await asyncio.to_thread(translate.progress_of, upload)
        return pb.QueryUploadResponse(files=files, committed=upload.committed)

    async def CommitUpload(self, request: pb.CommitUploadRequest, context: Context) -> pb.CommitUploadResponse:
        """See models.proto."""
        self._check_open()
        upload_id = request.upload_id
        upload = await asyncio.to_thread(self.uploads.get, upload_id)
        if (
            upload_id not in self._commits
        ):  # goes on when its client has lost patience, and serves the next one who asks
            task = asyncio.create_task(asyncio.to_thread(upload.commit, lambda whole: check_upload(self.base, whole)))
            self._commits[upload_id] = task
            task.add_done_callback(lambda done: self._committed(upload_id, done))
        await asyncio.shield(self._commits[upload_id])
        return pb.CommitUploadResponse(source_uri=f"{UPLOAD_SCHEME}{upload_id}")

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        """See models.proto."""
        self._check_open()
        record = await self.intake.create(request.job_id, request.spec, telemetry.traceparent(telemetry.logged()))
        self.runner.wake()
        return pb.CreateJobResponse(job=translate.job_of(record))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """See models.proto."""
        record = await self.board.current(check_name(request.job_id, "job_id"))
        return pb.GetJobResponse(job=translate.job_of(record))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """See models.proto."""
        if request.page_size > _MAX_PAGE:
            raise InvalidArgumentError(
                f"page_size is {request.page_size}; expected at most {_MAX_PAGE}", field="page_size"
            )
        after = translate.parse_page_token(request.page_token)
        wanted = [r for r in reversed(await self.board.all()) if request.model in {"", r.model}]
        rest = [r for r in wanted if after is None or (r.created, r.job_id) < after]
        page = rest[: request.page_size or _PAGE]
        token = translate.page_token(page[-1]) if len(page) < len(rest) else ""
        return pb.ListJobsResponse(jobs=[translate.job_of(r, report=False) for r in page], next_page_token=token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        """See models.proto."""
        async for record in self.board.watch(check_name(request.job_id, "job_id")):
            yield pb.WatchJobResponse(job=translate.job_of(record))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        """See models.proto."""
        record = await self.runner.cancel(check_name(request.job_id, "job_id"))
        return pb.CancelJobResponse(job=translate.job_of(record))

    async def GetRevision(self, request: pb.GetRevisionRequest, context: Context) -> pb.GetRevisionResponse:
        """See models.proto."""
        return pb.GetRevisionResponse(revision=translate.revision_of(await self.revisions.get(request.name)))

    async def DeleteRevision(self, request: pb.DeleteRevisionRequest, context: Context) -> pb.DeleteRevisionResponse:
        """See models.proto."""
        await self.revisions.delete(request.name, force=request.force)
        return pb.DeleteRevisionResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        """See models.proto."""
        routes, shadow = translate.routes_of(request)
        version = await self.revisions.set_alias(request.alias, routes, shadow, request.expected_version)
        return pb.SetAliasResponse(version=version.number)

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Context) -> pb.RollbackAliasResponse:
        """See models.proto."""
        version = await self.revisions.rollback(request.alias, request.version)
        return pb.RollbackAliasResponse(version=translate.version_of(version))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Context) -> pb.ListAliasesResponse:
        """See models.proto."""
        found = await self.revisions.aliases(request.alias)
        entries = []
        for name, versions in found.items():
            shown = versions if request.history else versions[:1]
            entries.append(pb.Alias(alias=name, versions=[translate.version_of(version) for version in shown]))
        return pb.ListAliasesResponse(aliases=entries)

    async def PinModel(self, request: pb.PinModelRequest, context: Context) -> pb.PinModelResponse:
        """See models.proto."""
        await self.revisions.pin(request.model, request.pinned)
        return pb.PinModelResponse()

    def _check_open(self) -> None:
        if self.draining:
            raise DrainingError("the compressor is shutting down; try again in a moment", retry_seconds=2)

    def _committed(self, upload_id: str, done: asyncio.Task[None]) -> None:
        del self._commits[upload_id]
        if not done.cancelled() and (error := done.exception()) is not None:  # its client may be gone by now
            log.info("upload %s was not committed: %s", upload_id, error)
