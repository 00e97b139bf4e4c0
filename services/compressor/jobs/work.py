"""What is done for a job: fetch and check its source, compress it, publish the result."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from opentelemetry.trace import SpanKind

from deltaserve import genai, telemetry
from deltaserve.delta.manifest import Manifest
from deltaserve.errors import DeltaServeError
from deltaserve.names import RevisionName
from deltaserve.store import Store
from services.compressor import publication
from services.compressor.base import Base
from services.compressor.jobs import compression
from services.compressor.jobs.held import HeldJob
from services.compressor.jobs.records import JobRecord
from services.compressor.jobs.stages import followed
from services.compressor.metrics import CompressorMetrics
from services.compressor.pipeline.spec import Options, Policy, Spec
from services.compressor.sources import Source, Sources
from services.compressor.uploads.inspection import check_folder, is_packed


@dataclass(frozen=True)
class JobWork:
    """The work of jobs; whatever is interrupted may be begun again.

    Attributes:
        store: where to publish.
        base: what to compress against.
        registered: done when the base is in the store, which comes before any of its deltas.
        sources: resolves source URIs.
        folder: one folder a job, for what must survive a restart.
        device: torch device of the pipeline.
        threads: torch threads of the pipeline; 0 for torch's own choice.
        metrics: of stages and bytes.
    """

    store: Store
    base: Base
    registered: asyncio.Future[None]
    sources: Sources
    folder: Path
    device: str
    threads: int
    metrics: CompressorMetrics = field(default_factory=CompressorMetrics)

    async def perform(self, held: HeldJob) -> None:
        """Does all the work of a job and appends its success.

        Raises:
            DeltaServeError: why it cannot be done; `held.record.report` holds the report if there is one.
        """
        record = held.record
        about: telemetry.Attributes = {
            genai.REQUEST_MODEL: record.model,
            genai.JOB: record.job_id,
            genai.ATTEMPT: record.attempts,
        }
        with (
            telemetry.span(f"compress {record.model}", SpanKind.CONSUMER, record.traceparent, about) as span,
            followed(span, self.metrics) as stages,
        ):
            held.watching = stages.progressed
            name = RevisionName(record.model, record.revision)
            if record.revision and await publication.published_by(self.store, name, record.job_id):
                held.sealed = True  # a former process was killed between publishing and saying so
                await held.append(state="succeeded")
                return
            folder = self.folder / record.job_id
            held.at("preparing")
            source = await self._source(held, folder)
            packed = source.folder if is_packed(source.folder) else await self._compress(held, source, folder)
            await self._publish(held, packed)

    async def forget(self, record: JobRecord) -> None:
        """Deletes what a job that has ended left behind: its work folder, and files of a revision that never came."""
        self.metrics.ended(record)
        await asyncio.to_thread(shutil.rmtree, self.folder / record.job_id, ignore_errors=True)
        if record.state != "succeeded" and record.revision:
            await publication.withdraw(self.store, RevisionName(record.model, record.revision))

    async def sweep(self, records: Iterable[JobRecord]) -> None:
        """Deletes work folders of jobs that have ended elsewhere, or whose clean-up was cut off."""
        for record in records:
            if record.ended:
                await asyncio.to_thread(shutil.rmtree, self.folder / record.job_id, ignore_errors=True)

    async def _source(self, held: HeldJob, folder: Path) -> Source:
        source = await self.sources.open(held.record.source_uri, folder / "source")
        await asyncio.to_thread(check_folder, self.base, source.folder, contents=not source.verified)
        return source

    async def _compress(self, held: HeldJob, source: Source, folder: Path) -> Path:
        asked = held.record.spec
        files = {
            name: await self.sources.open_side_file(
                str(asked.get(name, "")), source.folder, folder / name, f"spec.{name}"
            )
            for name in ("calibration_uri", "evaluation_uri")
        }
        spec = Spec(
            base=self.base.folder,
            tuned=source.folder,
            work=folder / "pipeline",
            model=held.record.model,
            options=msgspec.convert(asked.get("compression", {}), Options),
            policy=msgspec.convert(asked.get("policy", {}), Policy),
            calibration=files["calibration_uri"],
            evaluation=files["evaluation_uri"],
            device=self.device,
            threads=self.threads,
            base_fingerprint=self.base.fingerprint,
        )
        try:
            return await compression.run(spec, held.progressed)
        except DeltaServeError:
            held.reported(await asyncio.to_thread(compression.report_of, spec))
            raise

    async def _publish(self, held: HeldJob, packed: Path) -> None:
        record = held.record
        held.at("publishing")
        await asyncio.shield(self.registered)
        revision = await publication.reserve(self.store, record.model, record.job_id)
        await held.append(revision=revision)  # from here on only the holder of the job writes to the revision
        name = RevisionName(record.model, revision)
        manifest = await publication.upload_files(self.store, name, packed)
        await held.append()  # still ours?
        held.sealed = True
        await publication.publish_manifest(self.store, name, manifest, record.job_id)
        self.metrics.published(manifest.sizes.delta_bytes)
        await held.append(state="succeeded", report=_report(manifest))


def _report(manifest: Manifest) -> str:
    return json.dumps(manifest.report) if manifest.report is not None else ""
