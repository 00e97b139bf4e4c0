"""`ternary`, `int2`, `int3`, `int4`: evenly spaced levels around zero, an fp16 scale for each group of a row."""

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
from deltaserve.delta.gptq import gptq
from deltaserve.delta.grid import best_scale, code_of_zero, quantise, round_scale
from deltaserve.delta.packing import BITS, TRITS, Packing
from deltaserve.errors import FormatError

CODES = "codes"
SCALE = "scale"
GROUP_SIZE = "group_size"
DEFAULT_GROUP = 128

_CHUNK_ELEMENTS = 4 << 20  # bounds the temporaries of coding and decoding large matrices


@dataclass(frozen=True, slots=True)
class IntN:
    """Δ̂ = (code − (levels − 1)/2) · scale of the code's row and group.

    Planes: codes uint8 [N, bytes of a packed row], see deltaserve.delta.packing; scale fp16 [N, groups].
    Parameter group_size: columns that share a scale, a multiple of 16; 0 (the default) is the whole row. The last
    group of a row may be smaller.
    """

    name: str
    levels: int
    packing: Packing
    form: Form = "delta"

    @property
    def bits(self) -> float:
        """Bits of a weight's code, scales not counted."""
        return self.packing.bits

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes group_size."""
        check_known(self.name, params, (GROUP_SIZE,))
        check_matrix(self.name, shape)
        group = params.get(GROUP_SIZE, 0)
        if not 0 <= group < 1 << 31 or group % 16:
            raise FormatError(f"codec {self.name}: group_size is {group}; expected 0 or a multiple of 16")

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns the specs of codes and scale."""
        rows, columns = check_matrix(self.name, shape)
        groups = -(-columns // _group(params, columns))
        codes = PlaneSpec("U8", (rows, self.packing.row_bytes(columns)))
        return {CODES: codes, SCALE: PlaneSpec("F16", (rows, groups))}

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ [N, K]: GPTQ with curvature and feedback, else rounding on the grid of least error."""
        self.check_params(params, values.shape)
        group = _group(params, values.shape[1])
        if curvature is not None and options.feedback:
            codes, scale = gptq(values, curvature, options.damping, group, self.levels)
            return self._planes(values, codes, scale, group, curvature, options)
        diagonal = None if curvature is None else curvature.gram.diagonal()
        rows = max(1, _CHUNK_ELEMENTS // values.shape[1])
        parts = []
        for begin in range(0, values.shape[0], rows):
            chunk = values[begin : begin + rows]
            codes, scale = self._round(chunk, diagonal, group)
            parts.append(self._planes(chunk, codes, scale, group, curvature, options))
        return {plane: torch.cat([part[plane] for part in parts]) for plane in (CODES, SCALE)}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Scales are finite and not negative, bytes are ones that packing makes."""
        check_scale(self.name, planes[SCALE])
        self.packing.check(self.name, planes[CODES], shape[1])

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:
        """Returns Δ̂ [N, K]."""
        group = _group(params, shape[1])
        out = torch.empty(tuple(shape), dtype=dtype, device=planes[CODES].device)
        for begin in range(0, shape[0], rows := max(1, _CHUNK_ELEMENTS // shape[1])):
            chunk = slice(begin, begin + rows)
            codes = self.packing.unpack(planes[CODES][chunk], shape[1])
            out[chunk] = self._decode_codes(codes, planes[SCALE][chunk].float(), group)
        return out

    def _round(
        self, values: torch.Tensor, diagonal: torch.Tensor | None, group: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        columns = values.shape[1]
        pad = -columns % group
        groups = torch.nn.functional.pad(values, (0, pad)).view(values.shape[0], -1, group)
        weights = values.new_ones(columns) if diagonal is None else diagonal / diagonal.mean().clamp_min(1e-30)
        weights = torch.nn.functional.pad(weights, (0, pad)).view(-1, group)
        scale = best_scale(groups, None if diagonal is None and not pad else weights, self.levels)
        codes = quantise(groups, scale.unsqueeze(-1), self.levels).flatten(1)[:, :columns]
        return codes.to(torch.uint8), scale

    def _planes(
        self,
        values: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        group: int,
        curvature: Curvature | None,
        options: EncodeOptions,
    ) -> Planes:
        if options.unbiased:
            decoded = self._decode_codes(codes, scale, group)
            scale = round_scale(scale * row_scale(values, decoded, curvature, unbiased=True).unsqueeze(1))
        return {CODES: self.packing.pack(codes), SCALE: scale.half()}

    def _decode_codes(self, codes: torch.Tensor, scale: torch.Tensor, group: int) -> torch.Tensor:
        wide = scale.repeat_interleave(group, dim=1)[:, : codes.shape[1]]
        return codes.float().sub_(code_of_zero(self.levels)).mul_(wide)


TERNARY = IntN("ternary", 3, TRITS)
INTS = tuple(IntN(f"int{bits}", 1 << bits, BITS[bits]) for bits in (2, 3, 4))


def _group(params: Params, columns: int) -> int:
    return min(params.get(GROUP_SIZE, 0) or columns, columns)
