"""`lowrank_sign1`, `…_vector8`, `…_ternary`, `…_int2`: a few directions at full precision, the rest in few bits.

For deltas with directions that stand out, as those of embeddings: softmax pushes all tokens that a task never says the
same way, and that one direction holds half of an embedding's delta or more (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.codecs.base import (
    Codec,
    EncodeOptions,
    Form,
    Params,
    Planes,
    PlaneSpec,
    check_count,
    check_matrix,
)
from deltaserve.delta.codecs.intn import INTS, TERNARY
from deltaserve.delta.codecs.lowrank import LEFT, RANK, RIGHT, LowRank
from deltaserve.delta.codecs.sign1 import Sign1
from deltaserve.delta.codecs.vector import VECTORS

_FACTORS = LowRank()
_CHUNK_ELEMENTS = 32 << 20  # bounds the temporaries of coding large matrices


@dataclass(frozen=True, slots=True)
class Residual:
    """Δ̂ = left · right + what the inner codec makes of the rest.

    Planes: left and right as of `lowrank` in F16, and the inner codec's. Parameters: rank, and the inner codec's.
    """

    inner: Codec
    form: Form = "delta"

    @property
    def name(self) -> str:
        """What manifests call it."""
        return f"lowrank_{self.inner.name}"

    @property
    def bits(self) -> float:
        """Bits of a weight's code, scales and factors not counted."""
        return self.inner.bits

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes rank, at most the smaller dimension, and the inner codec's parameters."""
        check_count(self.name, params, RANK, min(check_matrix(self.name, shape)))
        self.inner.check_params(_inner(params), shape)

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:
        """Returns the specs of the factors and of the inner codec."""
        factors = _FACTORS.plane_specs(shape, dtype, {RANK: params[RANK]})
        return factors | self.inner.plane_specs(shape, dtype, _inner(params))

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ [N, K]: the best factors of that rank under Ĥ first, then the rest."""
        self.check_params(params, values.shape)
        factors = _FACTORS.encode(values, curvature, {RANK: params[RANK]}, options)
        left, right = factors[LEFT].float(), factors[RIGHT].float()
        inner = _inner(params)
        by_row = all(spec.rows == "each" for spec in self.inner.plane_specs(values.shape, "F32", inner).values())
        rows = max(1, _CHUNK_ELEMENTS // values.shape[1]) if by_row else values.shape[0]
        parts = [
            self.inner.encode(part - near @ right, curvature, inner, options)
            for part, near in zip(torch.split(values, rows), torch.split(left, rows), strict=True)
        ]
        return factors | {plane: torch.cat([part[plane] for part in parts]) for plane in parts[0]}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Checks the factors and the inner codec's planes."""
        _FACTORS.check_planes(planes, shape)
        self.inner.check_planes(planes, shape)

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:
        """Returns Δ̂ [N, K], added up in float32."""
        rest = self.inner.decode(planes, shape, _inner(params), torch.float32)
        return rest.addmm_(planes[LEFT].float(), planes[RIGHT].float()).to(dtype)


def _inner(params: Params) -> Params:
    return {name: value for name, value in params.items() if name != RANK}


RESIDUALS = (Residual(Sign1()), Residual(VECTORS[0]), Residual(TERNARY), Residual(INTS[0]))
