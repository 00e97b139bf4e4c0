"""`sparse24_int2`, `sparse24_int4`: ΔCompress as published, two of every four weights kept, an fp16 scale a row."""

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
from deltaserve.delta.packing import BITS
from deltaserve.delta.sparsegpt import GROUP, KEPT, sparsegpt
from deltaserve.errors import FormatError

INDEX = "index"
CODES = "codes"
SCALE = "scale"

_DAMPING = 0.01  # as published


@dataclass(frozen=True, slots=True)
class Sparse24:
    """Δ̂ = (code − 2^(width − 1)) · scale of the row where a weight is kept, 0 elsewhere.

    Planes: index uint8 [N, ceil(2G·2/8)], the places 0 to 3 of the two kept weights in each of the G = ceil(K/4)
    groups, ascending, two bits each; codes uint8 [N, ceil(2G·width/8)] in the same order; scale fp16 [N]. The last
    group is taken as four columns wide, whatever K is.
    """

    width: int
    form: Form = "delta"

    @property
    def name(self) -> str:
        """What manifests call it."""
        return f"sparse24_int{self.width}"

    @property
    def bits(self) -> float:
        """Bits a weight, places of the kept ones included, scales not counted."""
        return (2 + self.width) * KEPT / GROUP

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes no parameters."""
        check_known(self.name, params, ())
        check_matrix(self.name, shape)

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns the specs of index, codes and scale."""
        rows, columns = check_matrix(self.name, shape)
        kept = _kept(columns)
        return {
            INDEX: PlaneSpec("U8", (rows, BITS[2].row_bytes(kept))),
            CODES: PlaneSpec("U8", (rows, BITS[self.width].row_bytes(kept))),
            SCALE: PlaneSpec("F16", (rows,)),
        }

    def encode(
        self,
        values: torch.Tensor,
        curvature: Curvature | None,
        params: Params,
        options: EncodeOptions,  # noqa: ARG002
    ) -> Planes:
        """Codes Δ [N, K] as published, whatever the options: damping 0.01, min-max scale, no gain correction."""
        self.check_params(params, values.shape)
        kept, codes, scale = sparsegpt(values, curvature, _DAMPING, self.width)
        index, picked = _gather(kept, codes, 1 << (self.width - 1))
        return {INDEX: BITS[2].pack(index), CODES: BITS[self.width].pack(picked), SCALE: scale.half()}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Scales are finite and not negative, places ascend, padding bits are zero."""
        kept = _kept(shape[1])
        check_scale(self.name, planes[SCALE])
        BITS[2].check(self.name, planes[INDEX], kept)
        BITS[self.width].check(self.name, planes[CODES], kept)
        places = BITS[2].unpack(planes[INDEX], kept).view(shape[0], -1, KEPT)
        if not bool((places[..., 0] < places[..., 1]).all()):
            raise FormatError(f"codec {self.name}: places of kept weights do not ascend within their group of four")

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns Δ̂ [N, K]."""
        kept = _kept(shape[1])
        places = BITS[2].unpack(planes[INDEX], kept).long()
        codes = BITS[self.width].unpack(planes[CODES], kept).float().sub_(1 << (self.width - 1))
        values = codes.mul_(planes[SCALE].float().unsqueeze(1))
        places += torch.arange(kept, device=places.device) // KEPT * GROUP
        out = values.new_zeros(shape[0], kept // KEPT * GROUP).scatter_(1, places, values)
        return out[:, : shape[1]].to(dtype)


def _kept(columns: int) -> int:
    return -(-columns // GROUP) * KEPT


def _gather(kept: torch.Tensor, codes: torch.Tensor, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns places and codes of the kept weights, uint8 [N, 2G]; columns that pad the last group code zero."""
    rows, columns = kept.shape
    pad = -columns % GROUP
    mask = torch.nn.functional.pad(kept, (0, pad)).view(rows, -1, GROUP)
    padded = torch.nn.functional.pad(codes, (0, pad), value=zero).view(rows, -1, GROUP)
    # kept places first, in their order; a short last group is filled up with padding
    order = torch.argsort((~mask).to(torch.uint8), dim=-1, stable=True)[..., :KEPT].sort(dim=-1).values
    picked = padded.gather(-1, order)
    return order.to(torch.uint8).view(rows, -1), picked.view(rows, -1)


SPARSE24 = (Sparse24(2), Sparse24(4))
