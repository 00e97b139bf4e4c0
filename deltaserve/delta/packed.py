"""A tensor in packed form: its entry of the manifest and its planes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deltaserve.delta.codecs import Codec, Form, Planes, get_codec, take_rows
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
    def form(self) -> Form:
        """What it decodes to: Δ̂, W_f, or those values of W_f that differ from W_b's."""
        return self.codec.form

    @property
    def nbytes(self) -> int:
        """Bytes of all planes in memory."""
        return sum(plane.nbytes for plane in self.planes.values())

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns what the codec's form says, of the fine-tune's shape in `dtype`, on the planes' device."""
        return self.codec.decode(self.planes, self.shape, self.entry.params, dtype)

    def rows(self, rows: torch.Tensor | slice, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns some rows of `decode`, decoding no others.

        Args:
            rows: int64 [M] of row numbers, or a slice of the rows.
            dtype: of the result.

        Returns:
            [M, K] on the planes' device.
        """
        specs = self.codec.plane_specs(self.shape, self.entry.dtype, self.entry.params)
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.shape[0]), device=self.device)
        taken = take_rows(self.planes, specs, rows)
        return self.codec.decode(taken, (len(rows), *self.shape[1:]), self.entry.params, dtype)

    @property
    def device(self) -> torch.device:
        """Of the planes; the CPU's when there are none."""
        return next((plane.device for plane in self.planes.values()), torch.device("cpu"))

    def delta(self, base: torch.Tensor | None) -> torch.Tensor:
        """Returns Δ̂ in float32, whatever the codec.

        Args:
            base: W_b, needed unless the form is `delta`; rows it lacks count as zero, rows it has too many are cut.
        """
        decoded = self.decode(torch.float32)
        if self.form == "delta":
            return decoded
        change = decoded - self._fitted(base).to(decoded.device)
        return change if self.form == "whole" else change.nan_to_num_(0.0)

    def merged(self, base: torch.Tensor | None) -> torch.Tensor:
        """Returns Ŵ_f in float32; `base` as in `delta`, but needed unless the form is `whole`."""
        decoded = self.decode(torch.float32)
        if self.form == "whole":
            return decoded
        weights = self._fitted(base)
        decoded, weights = (
            (decoded, weights.to(decoded.device)) if self.planes else (decoded.to(weights.device), weights)
        )
        return weights + decoded if self.form == "delta" else torch.where(torch.isnan(decoded), weights, decoded)

    def _fitted(self, base: torch.Tensor | None) -> torch.Tensor:
        if base is None:
            raise ValueError(f"tensor {self.entry.name!r} of codec {self.entry.codec} means nothing without its base")
        return fit_rows(base.float(), self.shape[0])

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
