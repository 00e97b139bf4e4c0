"""What a client says it will send, checked before a byte is accepted. Free of I/O."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from deltaserve.delta.adapter import ADAPTER_WEIGHTS, holds_adapter
from deltaserve.delta.adapter_config import ADAPTER_CONFIG
from deltaserve.delta.headers import refuse_pickle
from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE
from deltaserve.errors import FormatError, InvalidArgumentError
from deltaserve.names import check_file_name, check_name

MAX_FILES = 1000
MAX_FILE_BYTES = 1 << 44
MAX_CONFIG_BYTES = 1 << 20
CONFIG_FILE = "config.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class DeclaredFile(msgspec.Struct, frozen=True):
    """A file: plain name, bytes, lower-case hex sha256."""

    path: str
    size: int
    sha256: str


class DeclaredTensor(msgspec.Struct, frozen=True):
    """A tensor as a safetensors header names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """All that StartUpload says; kept beside the files."""

    upload_id: str
    files: tuple[DeclaredFile, ...]
    config: dict[str, Any] | None  # of the checkpoint or the adapter; None for a packed delta
    tensors: tuple[DeclaredTensor, ...]

    @property
    def packed(self) -> bool:
        """Whether it is an already packed delta rather than a checkpoint or an adapter."""
        return self.config is None

    @property
    def adapter(self) -> bool:
        """Whether it is a LoRA adapter of PEFT rather than a checkpoint."""
        return self.config_file == ADAPTER_CONFIG

    @property
    def config_file(self) -> str:
        """Name of the file that `config` is the contents of."""
        return ADAPTER_CONFIG if any(file.path == ADAPTER_CONFIG for file in self.files) else CONFIG_FILE

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def declare(
    upload_id: str, files: tuple[DeclaredFile, ...], config_json: bytes, tensors: tuple[DeclaredTensor, ...]
) -> Declaration:
    """Returns the declaration when it is sound in itself; the base is not looked at.

    Raises:
        InvalidArgumentError: a bad id, path, size or hash, a pickle file, or files that are neither a checkpoint nor
            an adapter nor a packed delta.
        FormatError: config_json is not a JSON object.
    """
    check_name(upload_id, "upload_id")
    _check_files(files)
    names = [file.path for file in files]
    refuse_pickle(names)
    if MANIFEST_FILE in names and DELTA_FILE in names:
        return Declaration(upload_id=upload_id, files=files, config=None, tensors=())
    if not holds_adapter(names) and not (any(name.endswith(".safetensors") for name in names) and CONFIG_FILE in names):
        raise InvalidArgumentError(
            f"upload has files {names[:20]}; expected {CONFIG_FILE} and *.safetensors of a checkpoint, "
            f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} of an adapter, "
            f"or {MANIFEST_FILE} and {DELTA_FILE} of a packed delta",
            field="files",
        )
    if not tensors:
        raise InvalidArgumentError("a checkpoint or adapter is declared without its tensors", field="tensors")
    declaration = Declaration(upload_id=upload_id, files=files, config={}, tensors=tensors)
    return msgspec.structs.replace(declaration, config=parse_config(config_json, declaration.config_file))


def parse_config(data: bytes, name: str = CONFIG_FILE) -> dict[str, Any]:
    """Reads a config.json, or another of that kind. Raises FormatError."""
    if len(data) > MAX_CONFIG_BYTES:
        raise FormatError(f"{name} has {len(data)} bytes; expected at most {MAX_CONFIG_BYTES}", field="config_json")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is not JSON: {error}", field="config_json") from error
    if not isinstance(config, dict):
        raise FormatError(f"{name} is a JSON {type(config).__name__}; expected an object", field="config_json")
    return config


def _check_files(files: tuple[DeclaredFile, ...]) -> None:
    if not 0 < len(files) <= MAX_FILES:
        raise InvalidArgumentError(f"upload has {len(files)} files; expected 1 to {MAX_FILES}", field="files")
    seen: set[str] = set()
    for number, file in enumerate(files):
        field = f"files[{number}]"
        check_file_name(file.path, f"{field}.path")
        if file.path.casefold() in seen:  # file systems may not tell case apart
            raise InvalidArgumentError(f"file {file.path!r} is declared twice", field=f"{field}.path")
        seen.add(file.path.casefold())
        if file.size > MAX_FILE_BYTES:
            raise InvalidArgumentError(
                f"file {file.path!r} is declared with {file.size} bytes; expected at most {MAX_FILE_BYTES}",
                field=f"{field}.size",
            )
        if not _SHA256.fullmatch(file.sha256):
            raise InvalidArgumentError(
                f"sha256 of {file.path!r} is {file.sha256[:80]!r}; expected 64 lower-case hex digits",
                field=f"{field}.sha256",
            )
