"""The product's own pipeline as a method: what it delivers is read back and merged as serving would."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.compression_methods.ablations import Ablation
from benchmarks.compression_methods.case import Case, Method, StateDict
from benchmarks.compression_methods.data import CALIBRATION_ROWS, CALIBRATION_TOKENS
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.run import run
from services.compressor.pipeline.spec import Options, Spec


def ours(options: Mapping[str, Any], ablations: Sequence[Ablation] = ()) -> Method:
    """Returns the pipeline as a method; its bits are those of everything stored, headers and files too.

    Args:
        options: fields of services.compressor.pipeline.spec.Options.
        ablations: what is taken out of the pipeline for comparison.
    """
    own = {"calibration_samples": CALIBRATION_ROWS, "calibration_tokens": CALIBRATION_TOKENS}
    parsed = msgspec.convert({**own, **options}, Options)

    def method(base: StateDict, tuned: StateDict, case: Case) -> tuple[StateDict, int]:  # noqa: ARG001 - reads folders
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            spec = Spec(
                base=case.base,
                tuned=case.tuned,
                work=Path(folder),
                options=parsed,
                calibration=case.tuned / "train.jsonl",
                device=case.device,
            )
            for ablation in ablations:
                stack.enter_context(ablation())
            manifest = run(spec, Progress(io.StringIO()))
            merged = merged_state_dict(Checkpoint.open(case.base), DeltaReader.open(spec.out))
        return merged, 8 * manifest.sizes.delta_bytes

    return method
