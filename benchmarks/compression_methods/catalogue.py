"""All rows of the table by name, in the order in which they are measured. A new configuration is one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.compression_methods import ablations as ablate
from benchmarks.compression_methods.bitdelta import distilled, undistilled
from benchmarks.compression_methods.case import STORED_BITS, Case, Method, StateDict
from benchmarks.compression_methods.deltacompress import deltacompress
from benchmarks.compression_methods.ours import ours
from benchmarks.compression_methods.round_to_nearest import round_to_nearest

OURS: Mapping[str, Mapping[str, Any]] = {
    "ours tiny": {"preset": "tiny"},
    "ours 2.38 bits": {"bits_per_param": 2.38},  # what 2:4+int2 stores with embeddings in int4
    "ours balanced": {"preset": "balanced"},
    "ours faithful": {"preset": "faithful"},
    "ours 2:4+int2": {"codec": "sparse24_int2"},
    "ours sign1": {"codec": "sign1"},
    "ours int2": {"codec": "int2"},
    "ours int3": {"codec": "int3"},
    "ours int4": {"codec": "int4"},
}
"""Options of the pipeline by the row's name."""

ABLATIONS: Mapping[str, Mapping[str, ablate.Ablation]] = {
    "ours sign1": {
        "no reconstruction": ablate.no_reconstruction,
        "symmetric calibration": ablate.symmetric_calibration,
        "least-squares scales": ablate.least_squares_scales,
    },
    "ours int2": {
        "no reconstruction": ablate.no_reconstruction,
        "symmetric calibration": ablate.symmetric_calibration,
        "least-squares scales": ablate.least_squares_scales,
        "min-max grid": ablate.min_max_grid,
        "no error feedback": ablate.no_error_feedback,
    },
}
"""What is taken out of which row of OURS."""


def catalogue(steps: int, *, ablations: bool) -> dict[str, Method]:
    """Returns methods by name.

    Args:
        steps: of BitDelta's distillation.
        ablations: with the ablations of ours.
    """
    rows: dict[str, Method] = {
        "base": base_itself,
        "fine-tune": fine_tune_itself,
        **{f"round to nearest, {bits} bit": round_to_nearest(bits) for bits in (1, 2, 4)},
        "BitDelta, not distilled": undistilled,
        f"BitDelta, {steps} steps": distilled(steps),
        "DeltaCompress 2:4+int2": deltacompress(2),
        "DeltaCompress 2:4+int4": deltacompress(4),
        **{name: ours(options) for name, options in OURS.items()},
    }
    if ablations:
        for name, parts in ABLATIONS.items():
            rows |= {f"{name}, {what}": ours(OURS[name], [part]) for what, part in parts.items()}
            rows[f"{name}, 16-bit embeddings"] = ours({**OURS[name], "embedding_codec": "dense"})
    return rows


def fine_tune_itself(base: StateDict, tuned: StateDict, case: Case) -> tuple[StateDict, int]:  # noqa: ARG001
    """The fine-tune's checkpoint."""
    return tuned, STORED_BITS * sum(weight.numel() for weight in tuned.values())


def base_itself(base: StateDict, tuned: StateDict, case: Case) -> tuple[StateDict, int]:  # noqa: ARG001
    """The base, as if fine-tuning had changed nothing."""
    return base, 0
