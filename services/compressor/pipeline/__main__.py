"""`python -m services.compressor.pipeline SPEC.json`: one run in a process of its own.

Progress goes to standard output, a JSON object a line; logs to standard error. Ends with 0 when the packed delta lies
in `<work>/out`, with 3 when it was refused: `<work>/error.bin` then holds the error as a serialised google.rpc.Status.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import torch

from deltaserve import logs
from deltaserve.errors import DeltaServeError
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.run import run
from services.compressor.pipeline.spec import Spec, load_spec

REFUSED = 3
ERROR_FILE = "error.bin"

log = logging.getLogger("services.compressor.pipeline")


def main() -> int:
    """Runs the specification that the command line names; returns the exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m services.compressor.pipeline SPEC.json\n")
        return 2
    logs.setup("pipeline", form="text")  # the compressor reads these lines and logs them itself
    path = Path(sys.argv[1])
    work = path.parent
    try:
        spec = load_spec(path)
        work = spec.work
        work.mkdir(parents=True, exist_ok=True)
        _compress(spec)
    except DeltaServeError as error:
        log.warning("refused: %s", error.message)
        (work / ERROR_FILE).write_bytes(error.to_status().SerializeToString())
        return REFUSED
    return 0


def _compress(spec: Spec) -> None:
    if spec.threads:
        torch.set_num_threads(spec.threads)
    # libraries that print must not break the lines of progress
    with os.fdopen(os.dup(1), "w") as lines:
        os.dup2(2, 1)
        (spec.work / ERROR_FILE).unlink(missing_ok=True)
        _limit_device(spec)
        run(spec, Progress(lines))
        _log_device(spec)


def _limit_device(spec: Spec) -> None:
    device = torch.device(spec.device)
    if device.type != "cuda":
        return
    # beyond its limit the allocator gives back what it only keeps for reuse, so the limit is on what others see used
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, spec.device_bytes / whole), device.index)


def _log_device(spec: Spec) -> None:
    device = torch.device(spec.device)
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        log.info("device memory: peak %d bytes allocated, %d bytes reserved", allocated, reserved)


if __name__ == "__main__":
    sys.exit(main())
