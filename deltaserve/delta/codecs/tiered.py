"""`tiered_sign1`, `…_vector8`, `…_ternary`, `…_int2`: the rows that matter most in int4, all others in few bits.

For embeddings and lm_head: nearly all that an error costs is in the rows of the tokens that a fine-tune says (97 % in
64 of 4,096 for a task with a small alphabet, docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.calibration import Curvature, weighted
from deltaserve.delta.codecs.base import (
    Codec,
    EncodeOptions,
    Form,
    Params,
    Planes,
    PlaneSpec,
    check_count,
    check_known,
    check_matrix,
)
from deltaserve.delta.codecs.intn import GROUP_SIZE, INTS, TERNARY
from deltaserve.delta.codecs.sign1 import Sign1
from deltaserve.delta.codecs.vector import VECTORS
from deltaserve.errors import FormatError

ROWS = "rows"
_PREFIX = "upper_"
_UPPER = INTS[2]


@dataclass(frozen=True, slots=True)
class Tiered:
    """Δ̂ of the listed rows is what int4 makes of them, of all others what the inner codec does.

    Planes: the inner codec's for all rows; rows int32 [R], the listed rows' numbers, ascending; upper_codes and
    upper_scale, int4's planes of these rows. Parameters: rows R; group_size of int4, the inner codec has none.
    """

    inner: Codec
    form: Form = "delta"

    @property
    def name(self) -> str:
        """What manifests call it."""
        return f"tiered_{self.inner.name}"

    @property
    def bits(self) -> float:
        """Bits of a code of the rows that are not listed."""
        return self.inner.bits

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes rows, at most as many as there are, and group_size."""
        check_known(self.name, params, (ROWS, GROUP_SIZE))
        rows, columns = check_matrix(self.name, shape)
        listed = check_count(self.name, params, ROWS, rows)
        _UPPER.check_params(_upper(params), (listed, columns))

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:
        """Returns the specs of the inner codec, of the list, and of int4 for the listed rows."""
        listed = params[ROWS]
        upper = _UPPER.plane_specs((listed, shape[1]), dtype, _upper(params))
        specs = self.inner.plane_specs(shape, dtype, {}) | {ROWS: PlaneSpec("I32", (listed,), "list")}
        return specs | {_PREFIX + name: PlaneSpec(spec.dtype, spec.shape, "listed") for name, spec in upper.items()}

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ [N, K]; listed are the rows whose error by the inner codec costs most."""
        self.check_params(params, values.shape)
        planes = self.inner.encode(values, curvature, {}, options)
        error = values - self.inner.decode(planes, values.shape, {}, torch.float32)
        cost = weighted(error, error, curvature)
        if options.row_power is not None:
            cost = cost * options.row_power
        rows = cost.topk(params[ROWS]).indices.sort().values
        upper = _UPPER.encode(values[rows], curvature, _upper(params), options)
        return planes | {ROWS: rows.to(torch.int32)} | {_PREFIX + name: plane for name, plane in upper.items()}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """The list ascends and stays within the tensor; the rest as of the inner codec and int4."""
        rows = planes[ROWS].long()
        if not bool((rows[1:] > rows[:-1]).all() and rows[0] >= 0 and rows[-1] < shape[0]):
            raise FormatError(f"codec {self.name}: listed rows do not ascend between 0 and {shape[0] - 1}")
        self.inner.check_planes({name: plane for name, plane in planes.items() if not _is_upper(name)}, shape)
        _UPPER.check_planes(_upper_planes(planes), (rows.shape[0], shape[1]))

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:
        """Returns Δ̂ [N, K]."""
        out = self.inner.decode(planes, shape, {}, dtype)
        rows = planes[ROWS].long()
        out[rows] = _UPPER.decode(_upper_planes(planes), (rows.shape[0], shape[1]), _upper(params), dtype)
        return out


def _upper(params: Params) -> Params:
    return {name: value for name, value in params.items() if name == GROUP_SIZE}


def _is_upper(plane: str) -> bool:
    return plane == ROWS or plane.startswith(_PREFIX)


def _upper_planes(planes: Planes) -> Planes:
    return {name.removeprefix(_PREFIX): plane for name, plane in planes.items() if name.startswith(_PREFIX)}


TIERED = (Tiered(Sign1()), Tiered(VECTORS[0]), Tiered(TERNARY), Tiered(INTS[0]))
