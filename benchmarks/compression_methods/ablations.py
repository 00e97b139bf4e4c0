"""What the pipeline's parts are worth: each ablation takes one of them out while it is entered.

They replace named pieces of the pipeline; when one is renamed, entering its ablation fails, so no row lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from deltaserve.delta import gptq
from deltaserve.delta.codecs import intn
from deltaserve.delta.grid import round_scale
from services.compressor.pipeline import coder
from services.compressor.pipeline.models import Models
from services.compressor.pipeline.streams import Calibration

Ablation = Callable[[], AbstractContextManager[Any]]


def no_error_feedback() -> AbstractContextManager[Any]:
    """Rounds to nearest, weighed by the diagonal of H, instead of GPTQ."""
    return patch.object(coder, "_ENCODING", replace(coder._ENCODING, feedback=False))


def least_squares_scales() -> AbstractContextManager[Any]:
    """Scales of least error instead of scales that keep every row's gain at one."""
    return patch.object(coder, "_ENCODING", replace(coder._ENCODING, unbiased=False))


def symmetric_calibration() -> AbstractContextManager[Any]:
    """Codes Δ itself instead of the delta that makes up for the error of earlier layers."""

    def plain(delta: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return delta

    return patch.object(coder, "asymmetric_target", plain)


@contextmanager
def min_max_grid() -> Iterator[None]:
    """Scales that span every group instead of those of least error."""

    def spanning(values: torch.Tensor, weights: torch.Tensor | None, bits: int) -> torch.Tensor:  # noqa: ARG001
        return round_scale(2 * values.abs().amax(dim=-1) / ((1 << bits) - 1))

    with patch.object(gptq, "best_scale", spanning), patch.object(intn, "best_scale", spanning):
        yield


@contextmanager
def no_reconstruction() -> Iterator[None]:
    """Calibrates every layer on the fine-tune's activations, as if all layers before it were uncompressed."""
    stages, advance, begin = Calibration.stages, Calibration.advance, Models.begin

    def tuned_stages(self: Calibration, layer: int, tuned: Any, served: Any) -> Any:  # noqa: ARG001
        return stages(self, layer, tuned, tuned)

    def tuned_advance(self: Calibration, layer: int, tuned: Any, served: Any) -> None:  # noqa: ARG001
        advance(self, layer, tuned, tuned)

    def tuned_begin(self: Models, embeddings: Mapping[Any, torch.Tensor], *, calibrate: bool) -> None:
        begin(self, embeddings, calibrate=calibrate)
        if calibrate:
            self.calibration.served.begin(embeddings["fine_tune"])

    with ExitStack() as stack:
        stack.enter_context(patch.object(Calibration, "stages", tuned_stages))
        stack.enter_context(patch.object(Calibration, "advance", tuned_advance))
        stack.enter_context(patch.object(Models, "begin", tuned_begin))
        yield
