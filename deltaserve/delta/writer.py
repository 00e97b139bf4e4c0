"""Writer of packed deltas: parts as they are made, then one payload and manifest.

However often the making was stopped and resumed, the bytes are the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from deltaserve.delta.checkpoint import read_tensor
from deltaserve.delta.dtypes import SAFETENSORS_DTYPES, as_bytes
from deltaserve.delta.headers import TensorHeader, read_header_and_metadata
from deltaserve.delta.layout import group_planes, model_order, plane_key, plane_order
from deltaserve.delta.lossless import wrap
from deltaserve.delta.manifest import (
    DELTA_FILE,
    FORMAT,
    MANIFEST_FILE,
    STREAM_SUFFIX,
    VERSION,
    BaseRef,
    FileEntry,
    Manifest,
    StreamSize,
    TensorEntry,
    dump_manifest,
    parse_manifest,
)
from deltaserve.delta.packed import PackedTensor, planes_sha256
from deltaserve.delta.reader import file_sha256, unwrap_plane
from deltaserve.delta.safetensors_file import Buffer, Piece, write_file
from deltaserve.delta.sizes import measure
from deltaserve.errors import DeltaServeError, FormatError, InvalidArgumentError
from deltaserve.files import publish, temp_beside
from deltaserve.names import check_file_name

_ENTRIES = "entries"
_SUFFIX = ".part.safetensors"
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """What the manifest says about a delta besides its contents; fields as in Manifest."""

    model: str
    revision: str
    created: str
    base: BaseRef
    config: Mapping[str, Any]


class DeltaWriter:
    """Gathers packed tensors in part files below a folder, and assembles the delta from them.

    A part is one file that is there whole or not at all, so a job that was killed goes on after the last part. Memory
    is bounded by the largest part.
    """

    def __init__(self, folder: Path, *, lossless: bool = True) -> None:
        """Opens the folder.

        Args:
            folder: where the parts are, made when it is not there.
            lossless: store planes of parts that are added from now on as entropy-coded streams where that saves enough.
        """
        self._folder = folder
        self._lossless = lossless
        folder.mkdir(parents=True, exist_ok=True)

    def add_part(self, name: str, tensors: Sequence[PackedTensor]) -> int:
        """Writes a part, replacing one of that name; returns its bytes.

        Args:
            name: a plain file name without suffix, e.g. "layer-00003".
            tensors: what it holds, planes on the CPU.
        """
        check_file_name(name, "part")
        stored = [_store(tensor, self._lossless) for tensor in tensors]
        metadata = {_ENTRIES: msgspec.json.encode([entry for entry, _ in stored]).decode()}
        pieces = [piece for _, pieces in stored for piece in pieces]
        return write_file(self._path(name), pieces, metadata).size

    def parts(self) -> dict[str, int]:
        """Returns the parts that are there and whole, by name, with their bytes; drops those that are not."""
        found: dict[str, int] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            name = path.name.removesuffix(_SUFFIX)
            try:
                self.read_part(name)
            except DeltaServeError:
                path.unlink()
            else:
                found[name] = path.stat().st_size
        return found

    def read_part(self, name: str) -> list[PackedTensor]:
        """Returns the tensors of a part, verified. Raises FormatError when it is missing or damaged."""
        path = self._path(name)
        if not path.is_file():
            raise FormatError(f"there is no part {name!r}")
        entries, planes = _read_part(path)
        tensors = []
        for entry in entries:
            values = {plane: _read_plane(entry, plane, header) for plane, header in planes[entry.name].items()}
            if planes_sha256(values) != entry.sha256:
                raise FormatError(f"part {name!r}: tensor {entry.name!r} does not have its sha256")
            tensors.append(PackedTensor(entry.in_memory, values))
        return tensors

    def drop_part(self, name: str) -> None:
        """Forgets a part; nothing happens when there is none."""
        with suppress(FileNotFoundError):
            self._path(name).unlink()

    def finish(
        self,
        out: Path,
        identity: Identity,
        *,
        files: Mapping[str, Path],
        base_files: Mapping[str, Path],
        compression: Mapping[str, Any],
        report: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Assembles all parts into `out`: the payload, the side files, and last the manifest.

        The same parts, identity and files give the same bytes, in whatever order parts were made.

        Args:
            out: folder to write to; files of the same names are replaced.
            identity: goes into the manifest.
            files: side files of the fine-tune, by the names they get.
            base_files: the base's side files by name: a file equal to the base's is named, not stored.
            compression: options and versions, for the manifest.
            report: quality report, for the manifest.

        Raises:
            InvalidArgumentError: no parts, or two parts hold the same tensor.
            FormatError: a damaged part.
        """
        tensors = self._tensors()
        out.mkdir(parents=True, exist_ok=True)
        entries = [entry for entry, _ in tensors]
        written = write_file(out / DELTA_FILE, list(_payload(tensors)), {"format": FORMAT, "version": str(VERSION)})
        stored = [FileEntry(path=DELTA_FILE, size=written.size, sha256=written.sha256)]
        stored += [_side_file(out, name, files[name], base_files.get(name)) for name in sorted(files)]
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            model=identity.model,
            revision=identity.revision,
            created=identity.created,
            base=identity.base,
            config=dict(identity.config),
            tensors=entries,
            files=stored,
            sizes=measure(entries, stored),
            compression=dict(compression),
            report=None if report is None else dict(report),
        )
        write_manifest(out, manifest)
        return manifest

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _tensors(self) -> list[tuple[TensorEntry, dict[str, TensorHeader]]]:
        """Returns entry and planes of every tensor in model order."""
        found: dict[str, tuple[TensorEntry, dict[str, TensorHeader]]] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            entries, planes = _read_part(path)
            for entry in entries:
                if entry.name in found:
                    raise InvalidArgumentError(f"two parts hold tensor {entry.name!r}; one is {path.name!r}")
                found[entry.name] = entry, planes[entry.name]
        if not found:
            raise InvalidArgumentError(f"{str(self._folder)!r} holds no parts; expected at least one tensor")
        return [found[name] for name in sorted(found, key=model_order)]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest into a folder atomically, after reading it back as strictly as readers will."""
    data = dump_manifest(manifest)
    parse_manifest(data)
    temp = temp_beside(folder / MANIFEST_FILE)
    temp.write_bytes(data)
    publish(temp, folder / MANIFEST_FILE)


def _read_part(path: Path) -> tuple[list[TensorEntry], dict[str, dict[str, TensorHeader]]]:
    headers, metadata = read_header_and_metadata(path)
    try:
        entries = msgspec.json.decode(metadata.get(_ENTRIES, ""), type=list[TensorEntry])
    except msgspec.MsgspecError as error:
        raise FormatError(f"part {path.name!r} has no list of tensors: {error}") from error
    return entries, group_planes(entries, headers, path.name)


def _store(tensor: PackedTensor, lossless: bool) -> tuple[TensorEntry, list[Piece]]:
    """Returns how a tensor is stored: its entry, which says what is a stream, and its planes or their streams."""
    streams: dict[str, StreamSize] = {}
    pieces = []
    for plane in sorted(tensor.planes):
        key, values = plane_key(tensor.entry.name, plane), tensor.planes[plane].contiguous()
        stream = wrap(values) if lossless else None
        if stream is None:
            pieces.append(_piece(key, values))
        else:
            streams[plane] = StreamSize(raw_bytes=values.nbytes, stored_bytes=stream.nbytes)
            pieces.append(_piece(key + STREAM_SUFFIX, stream))
    return msgspec.structs.replace(tensor.entry, lossless=streams), pieces


def _piece(key: str, values: torch.Tensor) -> Piece:
    return Piece(key, SAFETENSORS_DTYPES[values.dtype], tuple(values.shape), values.nbytes, lambda: (as_bytes(values),))


def _read_plane(entry: TensorEntry, plane: str, header: TensorHeader) -> torch.Tensor:
    values = read_tensor(header)
    return unwrap_plane(entry, plane, values) if plane in entry.lossless else values


def _payload(tensors: Iterable[tuple[TensorEntry, dict[str, TensorHeader]]]) -> Iterator[Piece]:
    for _, planes in tensors:
        for header in sorted(planes.values(), key=plane_order):
            yield Piece(header.name, header.dtype, header.shape, header.bytes, _blocks_of(header))


def _blocks_of(header: TensorHeader) -> Callable[[], Iterator[Buffer]]:
    def blocks() -> Iterator[Buffer]:
        left = header.bytes
        with header.file.open("rb") as file:
            file.seek(header.begin)
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                left -= len(block)
                yield block

    return blocks


def _side_file(out: Path, name: str, path: Path, base: Path | None) -> FileEntry:
    check_file_name(name, "files")
    size, sha256 = path.stat().st_size, file_sha256(path)
    if base is not None and base.stat().st_size == size and file_sha256(base) == sha256:
        return FileEntry(path=name, size=size, sha256=sha256, source="base")
    temp = temp_beside(out / name)
    shutil.copyfile(path, temp)
    publish(temp, out / name)
    return FileEntry(path=name, size=size, sha256=sha256)
