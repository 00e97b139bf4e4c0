"""`lowrank`: Δ̂ = left · right. LoRA adapters as they are, and deltas that a few directions make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.codecs.base import (
    EncodeOptions,
    Form,
    Params,
    Planes,
    PlaneSpec,
    check_count,
    check_known,
    check_matrix,
)
from deltaserve.delta.grid import FP16_MAX
from deltaserve.delta.spectrum import factorise
from deltaserve.errors import FormatError

LEFT = "left"
RIGHT = "right"
RANK = "rank"
DTYPE = "dtype"

DTYPES = ("F16", "BF16", "F32")
"""What the parameter dtype (0, 1, 2) says the factors are stored in."""

_DAMPING = 0.01  # keeps the factor of the Gram matrix invertible where inputs never go


@dataclass(frozen=True, slots=True)
class LowRank:
    """Δ̂ = left · right.

    Planes: left [N, r]; right [r, K], shared by all rows. Parameters: rank r; dtype of both planes, see DTYPES.
    """

    name: str = "lowrank"
    bits: float = 0.0
    form: Form = "delta"

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes rank, at most the smaller dimension, and dtype."""
        check_known(self.name, params, (RANK, DTYPE))
        check_count(self.name, params, RANK, min(check_matrix(self.name, shape)))
        if not 0 <= params.get(DTYPE, 0) < len(DTYPES):
            raise FormatError(f"codec {self.name}: dtype is {params[DTYPE]}; expected 0 to {len(DTYPES) - 1}")

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns the specs of left and right."""
        rows, columns = check_matrix(self.name, shape)
        stored, rank = DTYPES[params.get(DTYPE, 0)], params[RANK]
        return {LEFT: PlaneSpec(stored, (rows, rank)), RIGHT: PlaneSpec(stored, (rank, columns), rows="shared")}

    def encode(
        self,
        values: torch.Tensor,
        curvature: Curvature | None,
        params: Params,
        options: EncodeOptions,  # noqa: ARG002
    ) -> Planes:
        """Codes Δ [N, K] by its best approximation of that rank under Ĥ, in fp16; FormatError for another dtype."""
        self.check_params(params, values.shape)
        if params.get(DTYPE, 0) != 0:
            raise FormatError(f"codec {self.name}: deltas are factorised into F16; dtype is for adapters")
        left, right = factorise(values, params[RANK], None if curvature is None else curvature.solver(_DAMPING))
        return {LEFT: _half(left), RIGHT: _half(right)}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:  # noqa: ARG002
        """All values are finite."""
        for plane in (LEFT, RIGHT):
            if not bool(torch.isfinite(planes[plane]).all()):
                raise FormatError(f"codec {self.name}: {plane} holds NaN or infinity; expected finite values")

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns Δ̂ [N, K], multiplied in float32."""
        return (planes[LEFT].float() @ planes[RIGHT].float()).to(dtype)


def _half(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(-FP16_MAX, FP16_MAX).half()
