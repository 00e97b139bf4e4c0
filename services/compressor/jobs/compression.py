"""One run of the compression pipeline: its specification file, its process, and what it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from deltaserve import files
from services.compressor.jobs import process
from services.compressor.jobs.records import Progress
from services.compressor.pipeline.spec import Spec

_CHILD = "services.compressor.jobs.child"


async def run(spec: Spec, on_progress: Callable[[Progress], None]) -> Path:
    """Compresses, going on from the layers that a former run has finished; returns the folder of the packed delta.

    Raises:
        DeltaServeError: why the fine-tune was refused, or InternalError when the process died.
    """
    path = spec.work / "spec.json"
    await asyncio.to_thread(_write, spec, path)
    await process.run([_CHILD, str(path)], spec.work / "error.bin", on_progress)
    return spec.out


def report_of(spec: Spec) -> str:
    """Returns the quality report (JSON text) that a run left, also one that the gate refused; or empty. Blocks."""
    path = spec.out / "report.json"
    return path.read_text() if path.is_file() else ""


def _write(spec: Spec, path: Path) -> None:
    temp = files.temp_beside(path)
    temp.write_bytes(msgspec.json.encode(spec, enc_hook=str))
    files.publish(temp, path)
