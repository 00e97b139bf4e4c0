"""`sparse_exact`: the values that a fine-tune changed, bit for bit. For RL deltas, which leave most weights alone."""

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
from deltaserve.delta.packing import BITS
from deltaserve.errors import FormatError

MASK = "mask"
BEGIN = "begin"
VALUES = "values"
CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class SparseExact:
    """W_f where it differs from W_b.

    Planes: mask uint8 [N, ceil(K/8)], bit 1 where a weight is changed; begin int32 [N], where the row's values begin;
    values [changed] in the tensor's own dtype, row after row, shared by all rows. Parameter: changed, how many.
    """

    name: str = "sparse_exact"
    bits: float = 1.0
    form: Form = "patch"

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes changed, at least one: `same` is for none."""
        check_known(self.name, params, (CHANGED,))
        rows, columns = check_matrix(self.name, shape)
        check_count(self.name, params, CHANGED, min(rows * columns, (1 << 31) - 1))

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:
        """Returns the specs of mask, begin and values."""
        rows, columns = check_matrix(self.name, shape)
        return {
            MASK: PlaneSpec("U8", (rows, BITS[1].row_bytes(columns))),
            BEGIN: PlaneSpec("I32", (rows,)),
            VALUES: PlaneSpec(dtype, (params[CHANGED],), rows="shared"),
        }

    def encode(
        self,
        values: torch.Tensor,
        curvature: Curvature | None,  # noqa: ARG002
        params: Params,
        options: EncodeOptions,  # noqa: ARG002
    ) -> Planes:
        """Codes W_f [N, K] in its own dtype with NaN where W_b stays, see `changes`."""
        self.check_params(params, values.shape)
        changed = ~torch.isnan(values)
        counts = changed.sum(dim=1)
        if int(counts.sum()) != params[CHANGED]:
            raise FormatError(f"codec {self.name}: changed is {params[CHANGED]}; the tensor has {int(counts.sum())}")
        begin = (counts.cumsum(0) - counts).to(torch.int32)
        return {MASK: BITS[1].pack(changed.to(torch.uint8)), BEGIN: begin, VALUES: values[changed]}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Values are finite, and rows begin where the mask says; padding bits are zero."""
        BITS[1].check(self.name, planes[MASK], shape[1])
        if not bool(torch.isfinite(planes[VALUES]).all()):
            raise FormatError(f"codec {self.name}: values hold NaN or infinity; expected finite ones")
        counts = BITS[1].unpack(planes[MASK], shape[1]).sum(dim=1, dtype=torch.int64)
        total = int(counts.sum())
        if total != planes[VALUES].shape[0] or not torch.equal(counts.cumsum(0) - counts, planes[BEGIN].long()):
            raise FormatError(
                f"codec {self.name}: the mask marks {total} weights; expected {planes[VALUES].shape[0]}, in rows that "
                "begin where the plane `begin` says"
            )

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns W_f [N, K] where it is changed, NaN elsewhere."""
        changed = BITS[1].unpack(planes[MASK], shape[1]).bool()
        rank = changed.cumsum(dim=1, dtype=torch.int32).sub_(1).add_(planes[BEGIN].unsqueeze(1))
        out = torch.full(tuple(shape), float("nan"), dtype=dtype, device=changed.device)
        out[changed] = planes[VALUES][rank[changed].long()].to(dtype)
        return out


def changes(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Returns W_f [N, K] in its own dtype, NaN where W_b, of whatever dtype, is the same number (zeros by sign)."""
    return tuned.masked_fill(unchanged(tuned, base), float("nan"))


def unchanged(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Tells where W_f is the same number as W_b (zeros by sign), Bool [N, K]; the dtypes may differ."""
    wide, reference = tuned.float(), base.float()
    return (wide == reference) & (torch.signbit(wide) == torch.signbit(reference))
