"""Codes one tensor as it was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import torch

from deltaserve.delta.calibration import Curvature, Moments, asymmetric_target, relative_error
from deltaserve.delta.codecs import EncodeOptions, get_codec
from deltaserve.delta.coding import code_delta, code_dense, code_same
from deltaserve.delta.dtypes import TORCH_DTYPES
from deltaserve.delta.packed import PackedTensor, planes_sha256
from services.compressor.pipeline.choices import EXACT, Choice
from services.compressor.pipeline.pair import Pair

_CHUNK_ELEMENTS = 32 << 20  # bounds the temporaries of coding large matrices: rows are coded independently

# Both relative to the Gram matrix's mean diagonal; chosen by KL over three real fine-tunes, see docs/log.md.
_RIDGE = 0.3  # of the asymmetric target
_COARSE_RIDGE = 1.0  # with about a bit a weight: more error is left that is no use to chase
_ENCODING = EncodeOptions(damping=0.3, feedback=True, unbiased=True)
_SYMMETRIC = ("sparse24_int2", "sparse24_int4")  # coded as published


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor that was coded.

    Attributes:
        packed: what is stored.
        served: Ŵ_f, float32.
        error: relative output error e(Δ̂) under the calibration inputs, or under I when there were none.
    """

    packed: PackedTensor
    served: torch.Tensor
    error: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of a matrix.

    Attributes:
        curvature: Ĥ of its inputs, or for an embedding what errors of columns cost.
        cross: C of deltaserve.delta.calibration, where calibration is sequential.
        power: how dear errors of its rows are, float32 [N], where that was measured.
    """

    curvature: Curvature
    cross: torch.Tensor | None = None
    power: torch.Tensor | None = None

    @classmethod
    def of(cls, moments: Moments) -> Statistics:
        """Returns the statistics of accumulated moments, which must have the cross-moment."""
        if moments.cross is None:
            raise ValueError("moments have no cross-moment")
        return cls(moments.curvature(), moments.cross)


@dataclass(frozen=True, slots=True)
class Coder:
    """Codes tensors of a pair.

    Attributes:
        pair: base and fine-tune.
        choices: how to code each coded tensor, by name.
    """

    pair: Pair
    choices: Mapping[str, Choice]

    def calibrated(self, name: str) -> bool:
        """Tells whether coding a tensor looks at its inputs."""
        return self.choices[name].calibrated

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
        choice = self.choices[name]
        if choice.codec == "same":
            header = self.pair.tuned.tensors[name]
            packed = code_same(name, header.shape, TORCH_DTYPES[header.dtype], self.pair.base_name(name))
            return Coded(packed, base.clone(), 1.0 if not torch.equal(base, tuned) else 0.0)
        if choice.codec == "dense":
            return Coded(code_dense(name, self.pair.tuned.read(name)), tuned, 0.0)
        if choice.codec == EXACT:
            return Coded(self.pair.whole(name), tuned, 0.0)
        parts, served = [], torch.empty_like(base)
        lost = size = 0.0
        for chunk in self._chunks(choice, base.shape):
            part = self._encode(name, choice, self._target(choice, base[chunk], tuned[chunk], statistics), statistics)
            parts.append(part)
            decoded = part.to(base.device).decode()  # at once, as a restarted run decodes it
            torch.add(base[chunk], decoded, out=served[chunk])
            for rows in _blocks(decoded.shape):
                delta = tuned[chunk][rows] - base[chunk][rows]
                energy = float(delta.square().sum(dtype=torch.float64))
                error = relative_error(delta, decoded[rows], statistics.curvature if statistics else None)
                lost, size = lost + error * energy, size + energy
        return Coded(_joined(parts), served, lost / size if size else 0.0)

    def _chunks(self, choice: Choice, shape: torch.Size) -> list[slice]:
        """Returns blocks of rows; one where a plane is shared by all rows."""
        specs = get_codec(choice.codec).plane_specs(shape, "F32", choice.params)
        whole = any(spec.rows != "each" for spec in specs.values())
        return [slice(0, shape[0])] if whole else _blocks(shape)

    def _target(
        self, choice: Choice, base: torch.Tensor, tuned: torch.Tensor, statistics: Statistics | None
    ) -> torch.Tensor:
        """Returns what is coded for Δ: Δ itself, or the asymmetric target."""
        target = tuned - base
        if statistics is not None and statistics.cross is not None and choice.codec not in _SYMMETRIC:
            ridge = _RIDGE if choice.fed_back else _COARSE_RIDGE
            for rows in _blocks(target.shape):
                target[rows] = asymmetric_target(
                    target[rows], tuned[rows], statistics.cross, statistics.curvature, ridge
                )
        return target

    def _encode(self, name: str, choice: Choice, target: torch.Tensor, statistics: Statistics | None) -> PackedTensor:
        return code_delta(
            name,
            target,
            TORCH_DTYPES[self.pair.tuned.tensors[name].dtype],
            choice.codec,
            base=self.pair.base_name(name),
            curvature=None if statistics is None else statistics.curvature,
            params=choice.params,
            options=_ENCODING if statistics is None else replace(_ENCODING, row_power=statistics.power),
        )


def _blocks(shape: Sequence[int]) -> list[slice]:
    rows = max(1, _CHUNK_ELEMENTS // shape[1])
    return [slice(begin, min(begin + rows, shape[0])) for begin in range(0, shape[0], rows)]


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
