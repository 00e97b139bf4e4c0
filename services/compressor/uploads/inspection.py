"""Looks into a checkpoint, adapter or packed delta before anything is done with it. Blocks: minutes for large ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from deltaserve.delta.adapted import open_fine_tune
from deltaserve.delta.adapter import ADAPTER_WEIGHTS, read_adapter
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.compatibility import check_compatible, check_delta_against_base
from deltaserve.delta.headers import TensorHeader, read_folder_headers, read_header, refuse_pickle
from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE, Manifest
from deltaserve.delta.reader import DeltaReader, file_sha256
from deltaserve.errors import BaseMismatchError, FormatError
from services.compressor.base import Base
from services.compressor.uploads.declaration import Declaration, parse_config
from services.compressor.uploads.upload import Upload


def is_packed(folder: Path) -> bool:
    """Tells whether a folder holds an already packed delta."""
    return (folder / MANIFEST_FILE).is_file() and (folder / DELTA_FILE).is_file()


def check_declared(base: Base, declaration: Declaration) -> None:
    """Checks a declared checkpoint or adapter against the base; a packed delta is only looked at when it is here.

    Raises:
        DeltaServeError: see check_compatible and read_adapter.
    """
    if declaration.config is None:
        return
    tensors = {tensor.name: tensor for tensor in declaration.tensors}
    if declaration.adapter:
        adapter = read_adapter(declaration.config, tensors, base.config, base.tensors)
        check_compatible(base.config, base.tensors, adapter.config, adapter.tensors)
    else:
        check_compatible(base.config, base.tensors, declaration.config, tensors)


def check_upload(base: Base, upload: Upload) -> None:
    """Checks the contents of a complete upload, and that they are what was declared.

    Raises:
        FormatError: a malformed file, or another config or tensor table than declared.
        DeltaServeError: see check_folder.
    """
    declaration = upload.declaration
    if declaration.config is not None:
        name = declaration.config_file
        if json.dumps(parse_config((upload.content / name).read_bytes(), name)) != json.dumps(declaration.config):
            raise FormatError(f"{name} differs from the config_json that was declared", field="config_json")
        weights = upload.content / ADAPTER_WEIGHTS
        _check_table(declaration, read_header(weights) if declaration.adapter else read_folder_headers(upload.content))
    check_folder(base, upload.content)


def check_folder(base: Base, folder: Path, *, contents: bool = True) -> None:
    """Checks a checkpoint, adapter or packed delta against the base.

    Args:
        base: the base.
        folder: with the files.
        contents: whether to read every value too; otherwise headers and config only.

    Raises:
        DeltaServeError: it is malformed, does not belong to the base, or holds NaN or infinity.
    """
    if is_packed(folder):
        reader = DeltaReader.open(folder, verify=contents)
        check_delta_against_base(reader.manifest, base.config, base.tensors, base.fingerprint)
        _check_files(base, reader.manifest)
        return
    tuned = open_fine_tune(folder, Checkpoint(base.folder, base.config, base.tensors))
    check_compatible(base.config, base.tensors, tuned.config, tuned.tensors)
    if contents:
        tuned.check_contents()


def _check_files(base: Base, manifest: Manifest) -> None:
    refuse_pickle(file.path for file in manifest.files)
    for file in manifest.files:
        path = base.folder / file.path
        if file.source == "base" and not (path.is_file() and file_sha256(path) == file.sha256):
            raise BaseMismatchError(
                f"manifest: file {file.path!r} is said to be the base's, but the base has no file of that name with "
                f"sha256 {file.sha256}"
            )


def _check_table(declaration: Declaration, headers: Mapping[str, TensorHeader]) -> None:
    declared = {tensor.name: (tensor.dtype, tensor.shape) for tensor in declaration.tensors}
    found = {name: (header.dtype, tuple(header.shape)) for name, header in headers.items()}
    for name in sorted(declared.keys() | found.keys()):
        if declared.get(name) != found.get(name):
            raise FormatError(
                f"tensor {name!r} is {found.get(name, 'missing')} in the files and {declared.get(name, 'missing')} "
                "in the declaration",
                field="tensors",
            )
