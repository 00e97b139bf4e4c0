"""`vector8`, `vector12`, `vector16`, `vector24`: a byte for so many weights, the number of their nearest codeword.

At one bit a weight codewords leave less error than signs do, and they go below one bit, which signs cannot
(docs/adr/0009-vector-codes.md). The codebooks are part of the format: 256 codewords of unit Gaussian vectors,
made once by scripts/make_codebooks.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

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

CODES = "codes"
SCALE = "scale"
CODEBOOKS = Path(__file__).with_name("codebooks.safetensors")

_CODEWORDS = 256
_CHUNK_ELEMENTS = 64 << 20  # of scores at a time


@dataclass(frozen=True, slots=True)
class Vector:
    """Δ̂ = scale of the row · codeword of every `width` columns.

    Planes: codes uint8 [N, ceil(K/width)]; scale fp16 [N]. No parameters. Of a last codeword that reaches beyond K only
    the first elements count.
    """

    width: int
    form: Form = "delta"

    @property
    def name(self) -> str:
        """What manifests call it."""
        return f"vector{self.width}"

    @property
    def bits(self) -> float:
        """Bits of a weight's code."""
        return 8 / self.width

    def check_params(self, params: Params, shape: Sequence[int]) -> None:
        """Takes none."""
        check_known(self.name, params, ())
        check_matrix(self.name, shape)

    def plane_specs(self, shape: Sequence[int], dtype: str, params: Params) -> dict[str, PlaneSpec]:  # noqa: ARG002
        """Returns the specs of codes and scale."""
        rows, columns = check_matrix(self.name, shape)
        return {CODES: PlaneSpec("U8", (rows, -(-columns // self.width))), SCALE: PlaneSpec("F16", (rows,))}

    def encode(
        self, values: torch.Tensor, curvature: Curvature | None, params: Params, options: EncodeOptions
    ) -> Planes:
        """Codes Δ [N, K]; feedback is not used: at one bit it fits the calibration, not the model."""
        self.check_params(params, values.shape)
        codes = self._nearest(values)
        scale = row_scale(values, self._words(codes, values.shape[1]), curvature, unbiased=options.unbiased)
        return {CODES: codes, SCALE: round_scale(scale).half()}

    def check_planes(self, planes: Planes, shape: Sequence[int]) -> None:  # noqa: ARG002
        """Scales are finite and not negative; every code has its codeword."""
        check_scale(self.name, planes[SCALE])

    def decode(self, planes: Planes, shape: Sequence[int], params: Params, dtype: torch.dtype) -> torch.Tensor:  # noqa: ARG002
        """Returns Δ̂ [N, K]."""
        return self._words(planes[CODES], shape[1]).mul_(planes[SCALE].float().unsqueeze(1)).to(dtype)

    def _nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Returns uint8 [N, ceil(K/width)]: the codewords nearest to rows scaled to a root mean square of one."""
        book = codebook(self.width).to(values.device)
        half = book.square().sum(dim=1).div_(2)
        found = []
        for rows in torch.split(values, max(1, _CHUNK_ELEMENTS * self.width // (_CODEWORDS * values.shape[1]))):
            unit = rows / rows.square().mean(dim=1, keepdim=True).sqrt_().clamp_min(1e-30)
            vectors = functional.pad(unit, (0, -unit.shape[1] % self.width)).view(len(rows), -1, self.width)
            found.append((vectors @ book.T).sub_(half).argmax(dim=2).to(torch.uint8))
        return torch.cat(found)

    def _words(self, codes: torch.Tensor, columns: int) -> torch.Tensor:
        """Returns the codewords side by side, float32 [N, K]."""
        book = codebook(self.width).to(codes.device)
        words: torch.Tensor = functional.embedding(codes.int(), book).flatten(1)
        return words[:, :columns].contiguous()


@functools.cache
def codebook(width: int) -> torch.Tensor:
    """Returns the codewords, float32 [256, width] of fp16 values."""
    words: torch.Tensor = load_file(CODEBOOKS)[f"vector{width}"]
    return words.float()


VECTORS = tuple(map(Vector, (8, 12, 16, 24)))
"""One bit a weight, 0.67, 0.5 and 0.33."""
