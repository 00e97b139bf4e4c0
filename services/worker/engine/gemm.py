"""Products with a constant matrix, kept in the layout that is fastest for the device."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

TYPICAL_ROWS = 32  # the batch size that the layout is chosen for; others are right too


class Matrix:
    """A constant matrix [N, K] to multiply rows with.

    On the CPU in float32 it is held in oneDNN's blocked layout: 2 to 3 times faster than plain GEMMs for batches of 8
    to 32 rows, which is where decoding is (measured). The operators are those that torch's own compiler emits.
    """

    def __init__(self, plain: torch.Tensor) -> None:
        self.shape = plain.shape
        self._blocked = _is_blockable(plain)
        with torch.inference_mode(mode=False):  # inference tensors cannot be converted back
            self._values = torch.ops.mkldnn._reorder_linear_weight(plain, TYPICAL_ROWS) if self._blocked else plain

    def rows_times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Returns x [M, K] · Wᵀ + bias [N], a tensor of its own [M, N]."""
        if not self._blocked:
            return linear(x, self._values, bias)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._values, bias, "none", [], "")
        return result

    def plain(self) -> torch.Tensor:
        """Returns the matrix in the usual layout, possibly a copy."""
        return self._values.to_dense() if self._blocked else self._values


def _is_blockable(plain: torch.Tensor) -> bool:
    return plain.device.type == "cpu" and plain.dtype == torch.float32 and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
