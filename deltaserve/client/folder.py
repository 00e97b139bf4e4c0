"""What of a local folder is uploaded: weights and side files of a checkpoint or adapter, or a packed delta's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltaserve.delta.adapter import ADAPTER_WEIGHTS, holds_adapter
from deltaserve.delta.adapter_config import ADAPTER_CONFIG
from deltaserve.delta.headers import INDEX_FILE, SINGLE_FILE, TensorHeader, read_folder_headers, read_header
from deltaserve.delta.manifest import MANIFEST_FILE, parse_manifest
from deltaserve.errors import InvalidArgumentError
from deltaserve.names import check_file_name
from deltaserve.v1 import models_pb2 as pb

_CONFIG = "config.json"

# what travels with a checkpoint besides its weights, by the names that transformers gives
_SIDE_FILES = (
    _CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class LocalUpload:
    """Files to send and what is declared about them.

    Attributes:
        paths: where each file is, by its name in the upload.
        request: what StartUpload takes; its upload_id is derived from the files' names, sizes and hashes, so that the
            same files continue the same upload.
    """

    paths: dict[str, Path]
    request: pb.StartUploadRequest

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.request.files)


def find_files(folder: Path, extra: Sequence[Path] = ()) -> dict[str, Path]:
    """Returns the files of a checkpoint, adapter or packed delta, by the name they get in the upload.

    Args:
        folder: holds `config.json` and safetensors, `adapter_config.json` and `adapter_model.safetensors` of PEFT, or
            the manifest of a packed delta.
        extra: more files to send along, such as calibration text; they may lie anywhere.

    Raises:
        InvalidArgumentError: no such folder or file, pickled weights, a bad or ambiguous name.
        FormatError: a malformed safetensors file or manifest.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(
            f"{str(folder)!r} is not a folder; expected one with config.json and *.safetensors", field="folder"
        )
    names = _names(folder)
    paths = {check_file_name(name, "files.path"): folder / name for name in names}
    for path in extra:
        if not path.is_file():
            raise InvalidArgumentError(f"there is no file {str(path)!r}", field="files")
        known = paths.setdefault(check_file_name(path.name, "files.path"), path)
        if known.resolve() != path.resolve():
            raise InvalidArgumentError(
                f"{str(path)!r} and {str(known)!r} would both be uploaded as {path.name!r}; rename one", field="files"
            )
    return paths


def plan_upload(
    folder: Path, extra: Sequence[Path] = (), progress: Callable[[str, int, int], None] = lambda *_: None
) -> LocalUpload:
    """Hashes the files of a folder and returns what StartUpload is told.

    Args:
        folder: see `find_files`.
        extra: see `find_files`.
        progress: called with the present file's name, the bytes hashed so far and the bytes in all.

    Raises:
        InvalidArgumentError, FormatError: see `find_files`.
    """
    paths = find_files(folder, extra)
    total, done = sum(path.stat().st_size for path in paths.values()), 0
    files = []
    for name, path in sorted(paths.items()):
        digest, size = hashlib.sha256(), 0
        for block in _blocks(path):
            digest.update(block)
            size += len(block)
            done += len(block)
            progress(name, done, total)
        files.append(pb.UploadFile(path=name, size=size, sha256=digest.hexdigest()))
    described = "\n".join(f"{file.path} {file.size} {file.sha256}" for file in files)
    upload_id = f"u-{hashlib.sha256(described.encode()).hexdigest()[:32]}"
    request = pb.StartUploadRequest(upload_id=upload_id, files=files)
    if MANIFEST_FILE not in paths:
        adapter = paths.get(ADAPTER_WEIGHTS)
        headers = read_folder_headers(folder) if adapter is None else read_header(adapter)
        request.config_json = (folder / (_CONFIG if adapter is None else ADAPTER_CONFIG)).read_bytes()
        request.tensors.extend(_tensor(header) for header in headers.values())
    return LocalUpload(paths, request)


def _names(folder: Path) -> list[str]:
    if (folder / MANIFEST_FILE).is_file():
        return _delta_files(folder)
    if holds_adapter(path.name for path in folder.iterdir()):
        side = [name for name in _SIDE_FILES if name != _CONFIG and (folder / name).is_file()]
        return [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *side]  # a config.json there may be is the base's
    return _checkpoint_files(folder)


def _delta_files(folder: Path) -> list[str]:
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    stored = [file.path for file in manifest.files if file.source == "delta"]
    missing = [name for name in stored if not (folder / name).is_file()]
    if missing:
        raise InvalidArgumentError(f"{MANIFEST_FILE} of {str(folder)!r} names {missing}, which are not there")
    return [MANIFEST_FILE, *stored]


def _checkpoint_files(folder: Path) -> list[str]:
    if not (folder / _CONFIG).is_file():
        raise InvalidArgumentError(
            f"{str(folder)!r} has neither {_CONFIG} (a checkpoint), {ADAPTER_CONFIG} (an adapter) nor {MANIFEST_FILE} "
            "(a packed delta)",
            field="folder",
        )
    weights = {header.file.name for header in read_folder_headers(folder).values()}
    index = [] if SINGLE_FILE in weights else [INDEX_FILE]
    return sorted(weights) + index + [name for name in _SIDE_FILES if (folder / name).is_file()]


def _tensor(header: TensorHeader) -> pb.TensorInfo:
    return pb.TensorInfo(name=header.name, dtype=header.dtype, shape=header.shape)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
