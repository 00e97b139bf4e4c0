"""Codes one tensor with the codec and options that its class calls for."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from deltaserve.delta.calibration import Curvature, Moments, asymmetric_target, relative_error
from deltaserve.delta.classes import classify
from deltaserve.delta.codecs import EncodeOptions, Params, get_codec
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.dtypes import TORCH_DTYPES
from deltaserve.delta.packed import PackedTensor, planes_sha256
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.spec import Options

_CHUNK_ELEMENTS = 32 << 20  # bounds the temporaries of coding large matrices: rows are coded independently

# Both relative to the Gram matrix's mean diagonal; chosen by KL over three real fine-tunes, see docs/log.md.
_RIDGE = {"sign1": 1.0}  # of the asymmetric target; fewer bits leave more error that is no use to chase
_INT_RIDGE = 0.3
_ENCODING = EncodeOptions(damping=0.3, feedback=True, unbiased=True)


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor that was coded.

    Attributes:
        packed: what is stored.
        served: W_b + Δ̂ (or W_f kept whole), float32.
        error: relative output error e(Δ̂) under the calibration inputs, or under I when there were none.
    """

    packed: PackedTensor
    served: torch.Tensor
    error: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of a linear's calibration inputs: Ĥ, and C (see deltaserve.delta.calibration)."""

    curvature: Curvature
    cross: torch.Tensor

    @classmethod
    def of(cls, moments: Moments) -> Statistics:
        """Returns the statistics of accumulated moments, which must have the cross-moment."""
        cross = moments.cross
        if cross is None:
            raise ValueError("moments have no cross-moment")
        return cls(moments.curvature(), cross)


@dataclass(frozen=True, slots=True)
class Coder:
    """Codes tensors of a pair."""

    pair: Pair
    options: Options

    def codec(self, name: str) -> str:
        """Returns the codec of a tensor."""
        kind = classify(name, self.pair.tuned.tensors[name].shape)
        if kind == "linear":
            return self.options.codec
        return self.options.embedding_codec if kind in ("embedding", "lm_head") else "dense"

    def keeps(self, name: str) -> bool:
        """Tells whether a tensor is kept whole or comes in packed form, and so needs no calibration."""
        return self.pair.ready or get_codec(self.codec(name)).form != "delta"

    def code(self, name: str, base: torch.Tensor, tuned: torch.Tensor, statistics: Statistics | None = None) -> Coded:
        """Codes one tensor.

        Args:
            name: of the fine-tune's tensor.
            base: W_b, float32 [N, K], of the fine-tune's shape.
            tuned: W_f, float32 [N, K].
            statistics: of its inputs, when there are any.
        """
        ready = self.pair.packed(name)
        if ready is not None:
            served = ready.to(base.device).merged(base)
            # a delta that vanishes in float32 beside W_b would have an infinite error
            return Coded(ready, served, min(1.0, relative_error(tuned - base, served - base, None)))
        if self.keeps(name):
            return Coded(code_dense(name, self.pair.tuned.read(name)), tuned, 0.0)
        rows = max(1, _CHUNK_ELEMENTS // base.shape[1])
        parts, served = [], torch.empty_like(base)
        lost = size = 0.0
        for begin in range(0, base.shape[0], rows):
            chunk = slice(begin, begin + rows)
            delta = tuned[chunk] - base[chunk]
            part = self._encode(name, delta, tuned[chunk], statistics)
            decoded = part.to(base.device).decode()
            served[chunk] = base[chunk] + decoded
            curvature = statistics.curvature if statistics else None
            energy = float(delta.square().sum(dtype=torch.float64))
            lost, size = lost + relative_error(delta, decoded, curvature) * energy, size + energy
            parts.append(part)
        return Coded(_joined(parts), served, lost / size if size else 0.0)

    def _encode(
        self, name: str, delta: torch.Tensor, tuned: torch.Tensor, statistics: Statistics | None
    ) -> PackedTensor:
        codec = self.codec(name)
        target, curvature = delta, None
        if statistics is not None:
            curvature = statistics.curvature
            target = asymmetric_target(delta, tuned, statistics.cross, curvature, _RIDGE.get(codec, _INT_RIDGE))
        return code_delta(
            name,
            target,
            TORCH_DTYPES[self.pair.tuned.tensors[name].dtype],
            codec,
            base=self.pair.base_name(name),
            curvature=curvature,
            params=self._params(codec),
            options=_ENCODING,
        )

    def _params(self, codec: str) -> Params:
        return {"group_size": self.options.group_size} if codec.startswith("int") else {}


def _joined(parts: list[PackedTensor]) -> PackedTensor:
    """Joins packed blocks of rows: every plane's first dimension is the rows."""
    if len(parts) == 1:
        return parts[0]
    planes = {plane: torch.cat([part.planes[plane] for part in parts]) for plane in parts[0].planes}
    entry = msgspec.structs.replace(
        parts[0].entry,
        shape=[sum(part.entry.shape[0] for part in parts), *parts[0].entry.shape[1:]],
        bytes=sum(plane.nbytes for plane in planes.values()),
        sha256=planes_sha256(planes),
    )
    return PackedTensor(entry, planes)
