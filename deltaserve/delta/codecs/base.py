"""What a codec is: one way to store a tensor as planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.errors import FormatError

Planes = dict[str, torch.Tensor]
Params = Mapping[str, int]

Form = Literal["delta", "whole", "patch"]
"""What planes decode to: Δ̂, which is added to W_b; W_f itself; or those values of W_f that differ from W_b's."""


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """What a plane must be: safetensors dtype and shape.

    Attributes:
        rows: what its first dimension is: `each` row of the tensor; `shared` by all rows; the ascending `list` of some
            rows' numbers; or the `listed` rows.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: Literal["each", "shared", "list", "listed"] = "each"


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How to code; nothing here is needed to decode.

    Attributes:
        damping: of GPTQ's feedback, relative to the Gram matrix's mean diagonal.
        feedback: GPTQ when there is curvature; False rounds to nearest, weighed by its diagonal.
        unbiased: scale every row so that ⟨Δ̂, Δ⟩ = ⟨Δ, Δ⟩ under the curvature (gain one), instead of least squares:
            shrinkage adds up over layers, noise does not.
        row_power: how dear errors of each row are, float32 [N]; None: all alike.
    """

    damping: float = 1.0
    feedback: bool = True
    unbiased: bool = True
    row_power: torch.Tensor | None = None


class Codec(Protocol):
    """One codec; stateless. Adding one takes a module and a line in deltaserve.delta.codecs."""

    @property
    def name(self) -> str:
        """What manifests call it."""

    @property
    def bits(self) -> float:
        """Bits of a weight's code, scales not counted."""

    @property
    def form(self) -> Form:
        """What it decodes to."""

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Raises FormatError for parameters or shapes that it does not take."""

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:
        """Returns what it stores for a tensor of this shape and safetensors dtype, by plane."""

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ, float32 [N, K] (W_f in its own dtype for the form `whole`; see SparseExact for `patch`)."""

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:
        """Raises FormatError for contents that no encoder makes; dtypes and shapes are right already."""

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:
        """Returns Δ̂ (W_f for `whole`, W_f with NaN where W_b stays for `patch`) in `dtype` on the planes' device.

        The planes may be what `take_rows` left; `shape` then has as many rows.
        """


def take_rows(planes: Planes, specs: Mapping[str, PlaneSpec], rows: torch.Tensor) -> Planes:
    """Returns the planes of some of a tensor's rows, int64 [M] in any order, as those of a tensor of M rows."""
    listing = next((planes[name] for name, spec in specs.items() if spec.rows == "list"), None)
    taken = {name: planes[name][rows] if spec.rows == "each" else planes[name] for name, spec in specs.items()}
    if listing is None:
        return taken
    place = torch.searchsorted(listing.long(), rows).clamp_max(listing.shape[0] - 1)
    hits = (listing[place] == rows).nonzero()[:, 0]
    for name, spec in specs.items():
        if spec.rows == "list":
            taken[name] = hits.to(planes[name].dtype)
        elif spec.rows == "listed":
            taken[name] = planes[name][place[hits]]
    return taken


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


def check_count(name: str, params: Params, key: str, most: int) -> int:
    """Returns a parameter that must be there and lie between 1 and `most`; raises FormatError."""
    value = params.get(key, 0)
    if not 1 <= value <= most:
        raise FormatError(f"codec {name}: {key} is {value}; expected 1 to {most}")
    return value


def check_scale(name: str, scale: torch.Tensor) -> None:
    """Raises FormatError for scales that are negative, NaN or infinite."""
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise FormatError(f"codec {name}: scales hold NaN, infinite or negative values; expected finite ones from 0")
