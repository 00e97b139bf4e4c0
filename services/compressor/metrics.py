"""What a compressor tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Counter, Histogram
from prometheus_client.core import Metric

from deltaserve import metrics
from services.compressor.jobs.records import JobRecord


class CompressorMetrics:
    """Counts jobs, their stages, and bytes.

    Attributes:
        registry: of everything.
    """

    def __init__(self) -> None:
        self.registry = metrics.registry()
        self._jobs = Histogram(
            "deltaserve_compressor_job_seconds", "From a job's creation to its end here, by how it ended",
            ("state",), buckets=metrics.STAGE_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._stages = Histogram(
            "deltaserve_compressor_stage_seconds", "Stages of jobs, each attempt's its own",
            ("stage",), buckets=metrics.STAGE_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._layers = Counter(
            "deltaserve_compressor_layers", "Layers that were compressed, or read again after a restart",
            registry=self.registry,
        )  # fmt: skip
        self._published = Counter(
            "deltaserve_compressor_published_bytes", "Bytes of deltas that were published", registry=self.registry
        )
        self._uploaded = Counter(
            "deltaserve_compressor_upload_bytes", "Bytes that uploads have brought", registry=self.registry
        )

    def serve(self, jobs: Callable[[], Mapping[str, float]]) -> None:
        """From now on tells of jobs that are not at their end too; `jobs` returns their number by state."""

        def collect() -> Iterable[Metric]:
            text = "Jobs that wait (in the store, for any compressor) and that run here"
            yield metrics.gauge("deltaserve_compressor_jobs", text, jobs(), "state")

        self.registry.register(metrics.Scraped(collect))

    def ended(self, record: JobRecord) -> None:
        """Counts a job that ended here."""
        self._jobs.labels(record.state).observe(max(0.0, record.updated - record.created))

    def stage(self, stage: str, seconds: float) -> None:
        """Counts a stage that is over."""
        self._stages.labels(stage).observe(seconds)

    def layers(self, count: int) -> None:
        """Counts layers."""
        self._layers.inc(count)

    def published(self, size: int) -> None:
        """Counts a delta's bytes."""
        self._published.inc(size)

    def uploaded(self, size: int) -> None:
        """Counts a chunk's bytes."""
        self._uploaded.inc(size)
