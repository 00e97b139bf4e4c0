"""From a job's progress to spans of its stages and groups of layers, and to their metrics."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from opentelemetry.trace import Span

from deltaserve import genai, telemetry
from services.compressor.jobs.records import Progress
from services.compressor.metrics import CompressorMetrics

_MOST_GROUPS = 16  # of an attempt: a trace of a model of 80 layers is to stay readable


class Stages:
    """Keeps the span of the stage at hand, and below it that of the group of layers at hand."""

    def __init__(self, job: Span, metrics: CompressorMetrics) -> None:
        """`job` is the span above all."""
        self._job = job
        self._metrics = metrics
        self._key: tuple[str, int] | None = None  # stage and attempt
        self._began = 0.0
        self._stage: Span | None = None
        self._group: Span | None = None
        self._first = 0  # layer of the group
        self._done = 0  # layers of the attempt

    def progressed(self, progress: Progress) -> None:
        """Takes what the job says of itself."""
        if _key(progress) != self._key:
            self._leave(progress, "")
            self._enter(progress)
        if progress.stage == "compressing" and progress.layers_total:
            self._layers(progress)

    def end(self, error: str) -> None:
        """Ends what is open; `error` is the error type of a job that failed, or empty."""
        self._leave(None, error)

    def _enter(self, progress: Progress) -> None:
        self._key, self._began = _key(progress), time.monotonic()
        stage, attempt = self._key
        self._stage = telemetry.start(stage, parent=self._job, attributes={genai.ATTEMPT: attempt})
        self._done = 0

    def _leave(self, progress: Progress | None, error: str) -> None:
        self._end_group(progress, error)
        if self._stage is None or self._key is None:
            return
        if error:
            telemetry.fail(self._stage, error)
        else:
            self._metrics.stage(self._key[0], time.monotonic() - self._began)
        self._stage.end()
        self._stage = self._key = None

    def _layers(self, progress: Progress) -> None:
        if progress.layers_done > self._done:
            self._metrics.layers(progress.layers_done - self._done)
            self._done = progress.layers_done
        size = math.ceil(progress.layers_total / _MOST_GROUPS)
        first = progress.layers_done // size * size
        if self._group is not None and first == self._first:
            return
        self._end_group(progress, "")
        if progress.layers_done < progress.layers_total:
            last = min(first + size, progress.layers_total) - 1
            about = {genai.FIRST_LAYER: first, genai.LAST_LAYER: last}
            name = f"layers {first}-{last}" if last > first else f"layer {first}"
            self._first, self._group = first, telemetry.start(name, parent=self._stage, attributes=about)

    def _end_group(self, progress: Progress | None, error: str) -> None:
        if self._group is None:
            return
        if progress is not None:
            self._group.set_attributes({genai.LAYER_ERROR: progress.layer_error, genai.BYTES_OUT: progress.bytes_out})
        if error:
            telemetry.fail(self._group, error)
        self._group.end()
        self._group = None


def _key(progress: Progress) -> tuple[str, int]:
    """Before the first attempt begins, progress tells none."""
    return progress.stage, max(progress.attempt, 1)


@contextlib.contextmanager
def followed(job: Span, metrics: CompressorMetrics) -> Iterator[Stages]:
    """Follows a job while the block runs; what is open then ends with it, as it does."""
    stages = Stages(job, metrics)
    try:
        yield stages
    except BaseException as error:
        stages.end(telemetry.error_type(error))
        raise
    stages.end("")
