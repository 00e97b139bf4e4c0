"""A tensor in packed form: its entry of the manifest and its planes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deltaserve.delta.codecs import Codec, Planes, get_codec
from deltaserve.delta.dtypes import as_bytes
from deltaserve.delta.manifest import TensorEntry


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """What is stored for one tensor.

    Attributes:
        entry: name, shape, codec and parameters.
        planes: the codec's planes, all on one device.
    """

    entry: TensorEntry
    planes: Planes

    @property
    def codec(self) -> Codec:
        """The codec."""
        return get_codec(self.entry.codec)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the fine-tune's tensor."""
        return tuple(self.entry.shape)

    @property
    def replaces(self) -> bool:
        """True when it holds the fine-tune's tensor W_f itself, False when it holds Δ = W_f − W_b."""
        return self.codec.replaces

    @property
    def nbytes(self) -> int:
        """Bytes of all planes in memory."""
        return sum(plane.nbytes for plane in self.planes.values())

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns Δ̂ (W_f when `replaces`) of the fine-tune's shape in `dtype`, on the planes' device."""
        return self.codec.decode(self.planes, self.shape, self.entry.params, dtype)

    def rows(self, rows: torch.Tensor | slice, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns some rows of `decode`, decoding no others.

        Args:
            rows: int64 [M] of row numbers, or a slice of the rows.
            dtype: of the result.

        Returns:
            [M, K] on the planes' device.
        """
        picked = {name: plane[rows] for name, plane in self.planes.items()}
        count = next(iter(picked.values())).shape[0]
        return self.codec.decode(picked, (count, *self.shape[1:]), self.entry.params, dtype)

    def delta(self, base: torch.Tensor | None) -> torch.Tensor:
        """Returns Δ̂ in float32, whatever the codec: W_f − W_b for one that holds W_f.

        Args:
            base: W_b, needed when `replaces`; rows it lacks count as zero, rows it has too many are cut.
        """
        decoded = self.decode(torch.float32)
        if not self.replaces:
            return decoded
        if base is None:
            raise ValueError(f"tensor {self.entry.name!r} of codec {self.entry.codec} has no delta without its base")
        return decoded - fit_rows(base.to(decoded.device, torch.float32), self.shape[0])

    def merged(self, base: torch.Tensor | None) -> torch.Tensor:
        """Returns Ŵ_f = W_b + Δ̂ in float32; `base` as in `delta`, not needed when `replaces`."""
        decoded = self.decode(torch.float32)
        if self.replaces:
            return decoded
        if base is None:
            raise ValueError(
                f"tensor {self.entry.name!r} of codec {self.entry.codec} cannot be merged without its base"
            )
        return fit_rows(base.to(decoded.device, torch.float32), self.shape[0]) + decoded

    def to(self, device: torch.device | str) -> PackedTensor:
        """Returns it with its planes on a device."""
        return PackedTensor(self.entry, {name: plane.to(device) for name, plane in self.planes.items()})


def fit_rows(base: torch.Tensor, rows: int) -> torch.Tensor:
    """Returns the base's tensor cut to `rows`, or zero-padded: what a resized vocabulary's Δ is counted from."""
    if base.shape[0] >= rows:
        return base[:rows]
    missing = base.new_zeros((rows - base.shape[0], *base.shape[1:]))
    return torch.cat([base, missing])


def planes_sha256(planes: Mapping[str, torch.Tensor]) -> str:
    """Returns the sha256 over the bytes of CPU planes in order of their names: TensorEntry.sha256."""
    digest = hashlib.sha256()
    for name in sorted(planes):
        digest.update(as_bytes(planes[name].contiguous()))
    return digest.hexdigest()
