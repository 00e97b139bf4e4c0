"""One run of the compression pipeline: its specification file, its process, and what it leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltaserve import files
from services.compressor.jobs import process
from services.compressor.jobs.records import Progress

_CHILD = "services.compressor.jobs.child"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the pipeline is to do.

    Attributes:
        base: folder of the base.
        tuned: folder of the fine-tune.
        work: folder that outlives restarts: finished layers, the result in `out/`, the error in `error.bin`.
        model: name that the manifest is made for.
        calibration: JSONL file; None for the built-in set.
        evaluation: labelled JSONL file; None for no accuracy.
        options: CompressionOptions as a JSON object, only what was set.
        policy: QualityPolicy as a JSON object, only what was set.
        device: torch device.
        threads: torch threads; 0 for torch's own choice.
    """

    base: Path
    tuned: Path
    work: Path
    model: str
    calibration: Path | None
    evaluation: Path | None
    options: Mapping[str, Any]
    policy: Mapping[str, Any]
    device: str
    threads: int


async def run(task: Task, on_progress: Callable[[Progress], None]) -> Path:
    """Compresses, going on from the layers that a former run has finished; returns the folder of the packed delta.

    Raises:
        DeltaServeError: why the fine-tune was refused, or InternalError when the process died.
    """
    spec = task.work / "spec.json"
    await asyncio.to_thread(_write_spec, task, spec)
    await process.run([_CHILD, str(spec)], task.work / "error.bin", on_progress)
    return task.work / "out"


def report_of(task: Task) -> str:
    """Returns the quality report (JSON text) that a run left, also one that the gate refused; or empty. Blocks."""
    path = task.work / "out" / "report.json"
    return path.read_text() if path.is_file() else ""


def _write_spec(task: Task, path: Path) -> None:
    temp = files.temp_beside(path)
    temp.write_text(json.dumps(asdict(task), default=str))
    files.publish(temp, path)
