"""Takes new jobs: everything that can be known to be wrong is refused before the job exists."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from deltaserve.errors import AlreadyExistsError, NotFoundError
from deltaserve.names import check_name
from deltaserve.v1 import models_pb2 as pb
from services.compressor import translate
from services.compressor.base import Base
from services.compressor.jobs.log import JobLog
from services.compressor.jobs.records import JobRecord
from services.compressor.revisions import Revisions
from services.compressor.sources import UPLOAD_SCHEME, Sources
from services.compressor.uploads.inspection import check_folder


@dataclass(frozen=True)
class Intake:
    """Creates jobs of one compressor.

    Attributes:
        identity: of its work folder.
        base: what fine-tunes must fit.
        sources: resolves source URIs.
        job_log: where jobs are kept.
        revisions: what is published.
        limits: of the policy that jobs get where they set none, by name. They become part of the job, so that whoever
            takes it up again, perhaps with other settings, holds it to the same.
    """

    identity: str
    base: Base
    sources: Sources
    job_log: JobLog
    revisions: Revisions
    limits: Mapping[str, float]

    async def create(self, job_id: str, spec: pb.JobSpec, traceparent: str = "") -> JobRecord:
        """Queues a job, or returns the one that this id and spec have made before.

        Args:
            job_id: chosen by the client, or empty.
            spec: what to compress and how.
            traceparent: of the call; the job's trace goes on from there.

        Raises:
            AlreadyExistsError: the id is taken by a job of another spec, or the model's name by an alias.
            DeltaServeError: the spec is bad, or its source is not there, not allowed or not compatible.
        """
        check_name(job_id, "job_id") if job_id else None
        effective = pb.JobSpec()
        effective.CopyFrom(spec)
        defaulted = translate.default_limits(effective, self.limits)
        translate.check_spec(effective)
        wanted = self._first(job_id, translate.spec_to_dict(effective), defaulted)
        existing = await self._existing(job_id)
        if existing is None:
            await self.revisions.check_free(spec.model)
            await asyncio.to_thread(self._check_source, spec)
            existing = await self.job_log.create(msgspec.structs.replace(wanted, traceparent=traceparent))
        if existing.asked != wanted.asked:  # the server's own limits may have changed since
            raise AlreadyExistsError(
                f"job id {job_id!r} is taken by a job of another spec; choose another id", job=job_id
            )
        return existing

    async def _existing(self, job_id: str) -> JobRecord | None:
        try:
            return await self.job_log.latest(job_id) if job_id else None
        except NotFoundError:
            return None

    def _check_source(self, spec: pb.JobSpec) -> None:
        folder = self.sources.check(spec.source_uri)
        if folder is not None:
            check_folder(self.base, folder, contents=False)
        for field in ("calibration_uri", "evaluation_uri"):
            self.sources.check_side_file(getattr(spec, field), folder, f"spec.{field}")

    def _first(self, job_id: str, spec: dict[str, object], defaulted: Sequence[str]) -> JobRecord:
        now = time.time()
        home = self.identity if str(spec.get("source_uri")).startswith(UPLOAD_SCHEME) else ""
        chosen = job_id or f"{str(spec['model'])[:40]}-{uuid.uuid4().hex[:12]}"
        return JobRecord(job_id=chosen, spec=spec, defaulted=tuple(defaulted), home=home, created=now, updated=now)
