"""What a codec is: one way to store a tensor as planes, each plane's first dimension being the tensor's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.errors import FormatError

Planes = dict[str, torch.Tensor]
Params = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """What a plane must be: safetensors dtype and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How to code; nothing here is needed to decode.

    Attributes:
        damping: of GPTQ's feedback, relative to the Gram matrix's mean diagonal.
        feedback: GPTQ when there is curvature; False rounds to nearest, weighed by its diagonal.
        unbiased: scale every row so that ⟨Δ̂, Δ⟩ = ⟨Δ, Δ⟩ under the curvature (gain one), instead of least squares:
            shrinkage adds up over layers, noise does not.
    """

    damping: float = 1.0
    feedback: bool = True
    unbiased: bool = True


class Codec(Protocol):
    """One codec; stateless. Adding one takes a module and a line in deltaserve.delta.codecs."""

    @property
    def name(self) -> str:
        """What manifests call it."""

    @property
    def bits(self) -> float:
        """Bits of a weight's code, scales not counted."""

    @property
    def replaces(self) -> bool:
        """True when it stores the tensor W_f itself, False when it stores Δ."""

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Raises FormatError for parameters or shapes that it does not take."""

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:
        """Returns what it stores for a tensor of this shape and safetensors dtype, by plane."""

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ, float32 [N, K] (or W_f in its own dtype when `replaces`)."""

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Raises FormatError for contents that no encoder makes; dtypes and shapes are right already."""

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:
        """Returns Δ̂ (or W_f when `replaces`) in `dtype`, of `shape`, on the planes' device."""


def check_matrix(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """Returns rows and columns of a matrix; raises FormatError for any other shape."""
    if len(shape) != 2:
        raise FormatError(f"codec {name} takes matrices; the tensor's shape is {list(shape)}")
    return shape[0], shape[1]


def check_known(name: str, params: Params, known: Sequence[str]) -> None:
    """Raises FormatError for a parameter that is not known."""
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise FormatError(f"codec {name} has no parameters {[key[:40] for key in unknown[:5]]}; it knows {list(known)}")


def check_scale(name: str, scale: torch.Tensor) -> None:
    """Raises FormatError for scales that are negative, NaN or infinite."""
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise FormatError(f"codec {name}: scales hold NaN, infinite or negative values; expected finite ones from 0")
