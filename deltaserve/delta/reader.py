"""Reader of a packed delta's folder. Every malformed file is refused; what is read can be served as it is."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path

import torch

from deltaserve.delta.codecs import get_codec
from deltaserve.delta.compatibility import check_delta_against_base
from deltaserve.delta.dtypes import TORCH_DTYPES
from deltaserve.delta.headers import TensorHeader, read_header
from deltaserve.delta.layout import group_planes
from deltaserve.delta.lossless import unwrap
from deltaserve.delta.manifest import (
    DELTA_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    TensorEntry,
    parse_manifest,
)
from deltaserve.delta.packed import PackedTensor, planes_sha256
from deltaserve.delta.sizes import check_sizes
from deltaserve.errors import DataLossError, FormatError, InvalidArgumentError

__all__ = ["DeltaReader", "check_delta_against_base", "file_sha256"]

_BLOCK_BYTES = 4 << 20


class DeltaReader:
    """An opened delta: manifest and header in memory, planes mapped from the file when asked for.

    Attributes:
        folder: where it lies.
        manifest: its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, planes: Mapping[str, Mapping[str, TensorHeader]]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._entries = {entry.name: entry for entry in manifest.tensors}
        self._planes = planes
        self._verified = False
        self._map = _map(folder / DELTA_FILE)

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> DeltaReader:
        """Opens a folder that holds a manifest, the payload and the files that the manifest says lie beside it.

        Args:
            folder: the folder.
            verify: read everything once and check every sha256 and every plane's contents now. Otherwise sizes and
                structure are checked now, and a tensor's contents when it is read.

        Raises:
            InvalidArgumentError: the folder holds no manifest, or lacks a file that it names.
            FormatError: anything malformed: manifest, header, planes, codes.
            DataLossError: a size or sha256 that is not the manifest's.
        """
        manifest = parse_manifest(_read_manifest(folder))
        for file in manifest.files:
            if file.source == "delta":
                _check_file(folder, file, verify)
        planes = group_planes(manifest.tensors, read_header(folder / DELTA_FILE), DELTA_FILE)
        check_sizes(manifest)
        reader = cls(folder, manifest, planes)
        if verify:
            for name in reader.names():
                reader.tensor(name)
            reader._verified = True
        return reader

    def names(self) -> list[str]:
        """Returns the names of the tensors in the order of their bytes; first those that have none."""
        return sorted(self._planes, key=lambda name: min((p.begin for p in self._planes[name].values()), default=0))

    def entry(self, name: str) -> TensorEntry:
        """Returns a tensor's entry of the manifest; raises InvalidArgumentError when there is none."""
        entry = self._entries.get(name)
        if entry is None:
            raise InvalidArgumentError(f"the delta has no tensor {name[:200]!r}; it has {len(self._entries)} others")
        return entry

    def tensor(self, name: str) -> PackedTensor:
        """Returns a tensor, its planes being the mapped file (valid as long as they are referenced) or decoded streams.

        Raises:
            InvalidArgumentError: there is no such tensor.
            DataLossError: its bytes do not have the manifest's sha256.
            FormatError: contents that its codec never makes, or a malformed stream.
        """
        entry = self.entry(name)
        planes = {plane: self._plane(entry, plane) for plane in self._planes[name]}
        packed = PackedTensor(entry.in_memory, planes)
        if not self._verified:
            _check_contents(packed)
        return packed

    def _plane(self, entry: TensorEntry, plane: str) -> torch.Tensor:
        header = self._planes[entry.name][plane]
        if header.bytes == 0:
            raise FormatError(f"{DELTA_FILE}: plane {header.name!r} is empty")
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=header.bytes, offset=header.begin)
        if plane in entry.lossless:
            return unwrap_plane(entry, plane, raw)
        dtype = TORCH_DTYPES[header.dtype]
        if header.begin % dtype.itemsize:  # after a plane of an odd number of bytes
            raw = raw.clone()
        return raw.view(dtype).reshape(header.shape)


def unwrap_plane(entry: TensorEntry, plane: str, stream: torch.Tensor) -> torch.Tensor:
    """Returns the plane of a tensor that a lossless stream, uint8 [m], holds; raises FormatError when it does not."""
    spec = get_codec(entry.codec).plane_specs(entry.shape, entry.dtype, entry.params)[plane]
    return unwrap(stream, TORCH_DTYPES[spec.dtype], spec.shape, f"plane {plane!r} of tensor {entry.name!r}")


def _check_contents(packed: PackedTensor) -> None:
    entry, found = packed.entry, planes_sha256(packed.planes)
    if found != entry.sha256:
        raise DataLossError(
            f"{DELTA_FILE}: tensor {entry.name!r} has sha256 {found}; its manifest says {entry.sha256}",
            tensor=entry.name,
        )
    packed.codec.check_planes(packed.planes, entry.shape)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        # a private mapping: torch wants memory that it could write to, and the file never changes
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise InvalidArgumentError(f"{str(folder)!r} has no {MANIFEST_FILE}; expected the folder of a packed delta")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise FormatError(f"{MANIFEST_FILE} has {path.stat().st_size} bytes; expected at most {MAX_MANIFEST_BYTES}")
    return path.read_bytes()


def _check_file(folder: Path, entry: FileEntry, verify: bool) -> None:
    path = folder / entry.path
    if not path.is_file():
        raise InvalidArgumentError(f"the delta lacks {entry.path!r}, which its manifest names")
    size = path.stat().st_size
    if size != entry.size:
        raise DataLossError(f"{entry.path!r} has {size} bytes; the manifest says {entry.size}", file=entry.path)
    if verify and (found := file_sha256(path)) != entry.sha256:
        raise DataLossError(f"{entry.path!r} has sha256 {found}; the manifest says {entry.sha256}", file=entry.path)


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
