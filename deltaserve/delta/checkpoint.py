"""A checkpoint folder: config, tensor table, weights read one at a time, and the files beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from deltaserve.delta.architectures import architecture_of, ties_embeddings
from deltaserve.delta.classes import LM_HEAD, is_derived
from deltaserve.delta.dtypes import TORCH_DTYPES, as_bytes
from deltaserve.delta.headers import TensorHeader, read_folder_headers
from deltaserve.errors import DataLossError, FormatError, InvalidArgumentError

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 1 << 20

SIDE_FILES = (
    CONFIG_FILE,
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
"""Files that travel with a checkpoint, by the names that `transformers` gives them."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; only headers and config are in memory.

    Attributes:
        folder: where it lies.
        config: contents of config.json.
        tensors: the tensor table by name, without caches that models compute by themselves.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Reads config and headers.

        Raises:
            InvalidArgumentError: no config.json or no safetensors there.
            FormatError: a malformed config, header or index.
        """
        config = read_config(folder / CONFIG_FILE)
        headers = {name: header for name, header in read_folder_headers(folder).items() if not is_derived(name)}
        return cls(folder, MappingProxyType(config), MappingProxyType(headers))

    @cached_property
    def architecture(self) -> str:
        """The architecture's name; raises UnsupportedModelError when it is not a supported one."""
        return architecture_of(self.config)

    @property
    def tied(self) -> bool:
        """Whether lm_head is the embedding: the config says so, and no tensor says otherwise."""
        return ties_embeddings(self.config) and LM_HEAD not in self.tensors

    def read(self, name: str, *, pinned: bool = False) -> torch.Tensor:
        """Reads one tensor into memory of its own, in its stored dtype, on the CPU; pinned for the way to a GPU.

        Raises:
            InvalidArgumentError: there is no such tensor.
            DataLossError: the file ends early: it changed since it was opened.
        """
        header = self.tensors.get(name)
        if header is None:
            raise InvalidArgumentError(f"checkpoint {self.folder.name!r} has no tensor {name[:200]!r}")
        return read_tensor(header, pinned=pinned)

    def check_finite(self, name: str) -> None:
        """Raises InvalidArgumentError when a tensor holds NaN or infinity."""
        tensor = self.read(name)
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise InvalidArgumentError(
                f"tensor {name!r} has {bad} of {tensor.numel()} values that are NaN or infinite; expected none",
                field="files",
                tensor=name,
                count=bad,
            )

    def check_contents(self) -> None:
        """Reads all tensors. Raises InvalidArgumentError when one holds NaN or infinity."""
        for name in self.tensors:
            self.check_finite(name)

    def side_files(self) -> dict[str, Path]:
        """Returns the files beside the weights that are there (config, tokenizer, chat template...), by name."""
        return {name: self.folder / name for name in SIDE_FILES if (self.folder / name).is_file()}


def read_config(path: Path) -> dict[str, Any]:
    """Reads a config.json. Raises InvalidArgumentError when there is none, FormatError when it is malformed."""
    if not path.is_file():
        raise InvalidArgumentError(f"{str(path.parent)!r} has no {path.name}; expected a checkpoint's folder")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise FormatError(f"{path.name} has {path.stat().st_size} bytes; expected at most {MAX_CONFIG_BYTES}")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path.name} is a JSON {type(config).__name__}; expected an object")
    return config


def read_tensor(header: TensorHeader, *, pinned: bool = False) -> torch.Tensor:
    """Reads the bytes that a header describes; `pinned` needs a GPU. Raises DataLossError when the file ends early."""
    raw = torch.empty(header.bytes, dtype=torch.uint8, pin_memory=pinned)
    with header.file.open("rb") as file:
        file.seek(header.begin)
        count = file.readinto(as_bytes(raw))
    if count != header.bytes:
        raise DataLossError(
            f"{header.file.name}: tensor {header.name!r} ends after {count} of {header.bytes} bytes; the file changed"
        )
    return raw.view(TORCH_DTYPES[header.dtype]).reshape(header.shape)
