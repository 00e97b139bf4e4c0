"""`dense`: the fine-tune's tensor itself, in its own dtype. For norms, biases, and whatever must be exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.codecs.base import EncodeOptions, Form, Params, Planes, PlaneSpec, check_known
from deltaserve.errors import FormatError

VALUES = "values"


@dataclass(frozen=True, slots=True)
class Dense:
    """W_f as it is. Plane: values, the tensor's own dtype and shape."""

    name: str = "dense"
    bits: float = 16.0
    form: Form = "whole"

    def check_params(self, params: Params, shape: Sequence[int]) -> None:  # noqa: ARG002
        """Takes no parameters, and any shape."""
        check_known(self.name, params, ())

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns the spec of values."""
        return {VALUES: PlaneSpec(dtype, tuple(shape))}

    def encode(
        self,
        values: torch.Tensor,
        curvature: Curvature | None,  # noqa: ARG002
        params: Params,
        options: EncodeOptions,  # noqa: ARG002
    ) -> Planes:
        """Keeps W_f as it is."""
        self.check_params(params, values.shape)
        return {VALUES: values.contiguous()}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:  # noqa: ARG002
        """All values are finite."""
        if not bool(torch.isfinite(planes[VALUES]).all()):
            raise FormatError("codec dense: values hold NaN or infinity; expected finite ones")

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns W_f."""
        return planes[VALUES].to(dtype)
