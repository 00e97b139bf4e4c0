"""`same`: the base's tensor, unchanged. For what a fine-tune froze, and for deltas not worth a bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.codecs.base import EncodeOptions, Form, Params, Planes, PlaneSpec, check_known


@dataclass(frozen=True, slots=True)
class Same:
    """Δ̂ = 0. No planes."""

    name: str = "same"
    bits: float = 0.0
    form: Form = "delta"

    def check_params(self, params: Params, shape: Sequence[int]) -> None:  # noqa: ARG002
        """Takes no parameters, and any shape."""
        check_known(self.name, params, ())

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns none."""
        return {}

    def encode(
        self,
        values: torch.Tensor,  # noqa: ARG002
        curvature: Curvature | None,  # noqa: ARG002
        params: Params,  # noqa: ARG002
        options: EncodeOptions,  # noqa: ARG002
    ) -> Planes:
        """Stores nothing."""
        return {}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """There are none."""

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns zeros on the CPU: there is no plane to tell a device."""
        return torch.zeros(tuple(shape), dtype=dtype)
