"""Progress of long work: live bars on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deltaserve.cli.console import bytes_text, seconds_text
from deltaserve.client import UploadProgress
from deltaserve.v1 import models_pb2 as pb

_LINE_SECONDS = 5.0  # between two lines about the same stage, in a pipe

_UPLOAD_STAGES = {"hashing": "hash files", "sending": "upload", "verifying": "verify on the server"}
_JOB_STAGES = {
    pb.JOB_STAGE_PREPARING: "prepare",
    pb.JOB_STAGE_COMPRESSING: "compress",
    pb.JOB_STAGE_EVALUATING: "evaluate",
    pb.JOB_STAGE_PUBLISHING: "publish",
}


class Meter:
    """Stages one after the other, each with how far it is; `with` shows it. May be told from any thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        if console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>4.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
        self._tasks: dict[str, TaskID] = {}
        self._stage = ""
        self._note = ""
        self._started = self._told = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish_stage()
        if self._live is not None:
            self._live.stop()

    def update(self, stage: str, done: float = 0, total: float | None = None, note: str = "") -> None:
        """Notes how far a stage is; another stage than before ends the former one.

        Args:
            stage: what is being done.
            done: how much of it is finished.
            total: how much there is; None: not known.
            note: more about it, such as bytes or an estimate.
        """
        entered = stage != self._stage
        if entered:
            self._finish_stage()
            self._stage, self._started, self._told = stage, time.monotonic(), time.monotonic()
        self._note = note
        if self._live is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._live.add_task(stage, total=None, note=note)
            elif entered:  # again, in another attempt
                self._live.reset(self._tasks[stage])
            self._live.update(self._tasks[stage], completed=done, total=total or None, note=note)
        elif time.monotonic() - self._told > _LINE_SECONDS:
            self._told = time.monotonic()
            share = f" {100 * done / total:.0f} %" if total else ""
            self._console.print(f"  {stage}{share}  {note}".rstrip())

    def upload(self, progress: UploadProgress) -> None:
        """Notes progress of an upload: what AsyncClient.upload calls."""
        if progress.stage == "verifying":
            self.update(_UPLOAD_STAGES[progress.stage])
        else:
            note = f"{bytes_text(progress.done)} of {bytes_text(progress.total)}"
            self.update(_UPLOAD_STAGES[progress.stage], progress.done, progress.total, note)

    def job(self, job: pb.Job) -> None:
        """Notes progress of a job: what AsyncClient.wait_for_job calls."""
        if job.state == pb.JOB_STATE_QUEUED:
            self.update("wait in the queue")
        elif job.state == pb.JOB_STATE_RUNNING:
            progress = job.progress
            stage = _JOB_STAGES.get(progress.stage, "start")
            compressing = progress.stage == pb.JOB_STAGE_COMPRESSING
            total = progress.layers_total if compressing else None
            self.update(stage, progress.layers_done if compressing else 0, total, _job_note(job))

    def _finish_stage(self) -> None:
        if not self._stage:
            return
        if self._live is not None:
            self._live.update(self._tasks[self._stage], completed=1, total=1)
        else:
            took = seconds_text(time.monotonic() - self._started)
            self._console.print(f"  {self._stage}: done in {took}  {self._note}".rstrip())
        self._stage = ""


def _job_note(job: pb.Job) -> str:
    progress, parts = job.progress, []
    if progress.attempt > 1:
        smallest = job.spec.compression.smallest  # whose attempts go down as well as up
        parts.append(f"attempt {progress.attempt}" + ("" if smallest else ": more bits"))
    if progress.stage == pb.JOB_STAGE_COMPRESSING:
        parts.append(f"layer {progress.layers_done} of {progress.layers_total}")
    if progress.bytes_out:
        parts.append(bytes_text(progress.bytes_out))
    if progress.layer_error:
        parts.append(f"error of the last layer {progress.layer_error:.4f}")
    if progress.HasField("eta"):
        parts.append(f"{seconds_text(progress.eta.ToMicroseconds() / 1e6)} left")
    return ", ".join(parts)
