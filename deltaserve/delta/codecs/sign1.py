"""`sign1`: one sign bit a weight and an fp16 scale a row, and another a column if asked for."""

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
    check_known,
    check_matrix,
    check_scale,
)
from deltaserve.delta.codecs.gain import row_scale
from deltaserve.delta.grid import round_scale
from deltaserve.delta.packing import BITS
from deltaserve.errors import FormatError

SIGNS = "signs"
SCALE = "scale"
COLUMN = "column"
COLUMNS = "columns"

_SWEEPS = 6  # of fitting column magnitudes; they settle in three or four


@dataclass(frozen=True, slots=True)
class Sign1:
    """Δ̂ = scale of the row · scale of the column · (2·bit − 1), bit 1 for Δ ≥ 0.

    Planes: signs uint8 [N, ceil(K/8)], see deltaserve.delta.packing; scale fp16 [N]; with the parameter columns = 1
    also column fp16 [K], shared by all rows.
    """

    name: str = "sign1"
    bits: float = 1.0
    form: Form = "delta"

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes columns, 0 or 1."""
        check_known(self.name, params, (COLUMNS,))
        check_matrix(self.name, shape)
        if params.get(COLUMNS, 0) not in (0, 1):
            raise FormatError(f"codec {self.name}: columns is {params[COLUMNS]}; expected 0 or 1")

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns the specs of signs, scale and column."""
        rows, columns = check_matrix(self.name, shape)
        specs = {SIGNS: PlaneSpec("U8", (rows, BITS[1].row_bytes(columns))), SCALE: PlaneSpec("F16", (rows,))}
        return specs | ({COLUMN: PlaneSpec("F16", (columns,), rows="shared")} if params.get(COLUMNS) else {})

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ [N, K]; feedback is not used: at one bit it fits the calibration, not the model."""
        self.check_params(params, values.shape)
        bits = values >= 0
        codes = bits.float().mul_(2).sub_(1)
        planes = {SIGNS: BITS[1].pack(bits.to(torch.uint8))}
        if params.get(COLUMNS):
            column = round_scale(_column_magnitudes(values.abs()))
            codes *= column
            planes[COLUMN] = column.half()
        planes[SCALE] = round_scale(row_scale(values, codes, curvature, unbiased=options.unbiased)).half()
        return planes

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Scales are finite and not negative, padding bits are zero."""
        for plane in planes.keys() & {SCALE, COLUMN}:
            check_scale(self.name, planes[plane])
        BITS[1].check(self.name, planes[SIGNS], shape[1])

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns Δ̂ [N, K]."""
        signs = BITS[1].unpack(planes[SIGNS], shape[1]).float().mul_(2).sub_(1)
        if COLUMN in planes:
            signs.mul_(planes[COLUMN].float())
        return signs.mul_(planes[SCALE].float().unsqueeze(1)).to(dtype)


def _column_magnitudes(sizes: torch.Tensor) -> torch.Tensor:
    """Returns c [K], of mean one, for which r cᵀ with its best r is nearest to |Δ| [N, K] by least squares."""
    column = torch.ones(sizes.shape[1], device=sizes.device)
    for _ in range(_SWEEPS):
        row = sizes @ column
        column = row @ sizes
        column = column / column.mean().clamp_min(1e-30)
    return column if bool(torch.isfinite(column).all()) else torch.ones_like(column)
