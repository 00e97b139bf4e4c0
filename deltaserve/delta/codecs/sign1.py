"""`sign1`: one sign bit a weight and an fp16 scale a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.codecs.base import (
    EncodeOptions,
    Params,
    Planes,
    PlaneSpec,
    check_known,
    check_matrix,
    check_scale,
)
from deltaserve.delta.codecs.gain import row_scale
from deltaserve.delta.grid import round_scale
from deltaserve.delta.packing import pack, packed_bytes, padding_is_zero, unpack
from deltaserve.errors import FormatError

SIGNS = "signs"
SCALE = "scale"


@dataclass(frozen=True, slots=True)
class Sign1:
    """Δ̂ = scale · (2·bit − 1), bit 1 for Δ ≥ 0.

    Planes: signs uint8 [N, ceil(K/8)], see deltaserve.delta.packing; scale fp16 [N].
    """

    name: str = "sign1"
    bits: float = 1.0
    replaces: bool = False

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes no parameters."""
        check_known(self.name, params, ())
        check_matrix(self.name, shape)

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns the specs of signs and scale."""
        rows, columns = check_matrix(self.name, shape)
        return {SIGNS: PlaneSpec("U8", (rows, packed_bytes(columns, 1))), SCALE: PlaneSpec("F16", (rows,))}

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ [N, K]; feedback is not used: at one bit it fits the calibration, not the model."""
        self.check_params(params, values.shape)
        bits = values >= 0
        scale = row_scale(values, bits.float().mul_(2).sub_(1), curvature, unbiased=options.unbiased)
        return {SIGNS: pack(bits.to(torch.uint8), 1), SCALE: round_scale(scale).half()}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Scales are finite and not negative, padding bits are zero."""
        check_scale(self.name, planes[SCALE])
        if not padding_is_zero(planes[SIGNS], 1, shape[1]):
            raise FormatError("codec sign1: bits after the last sign of a row are set; expected zeros")

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns Δ̂ [N, K]."""
        signs = unpack(planes[SIGNS], 1, shape[1]).float().mul_(2).sub_(1)
        return signs.mul_(planes[SCALE].float().unsqueeze(1)).to(dtype)
