"""The base that this compressor compresses against, and its copy in the store."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.fingerprint import cached_fingerprint
from deltaserve.delta.headers import TensorHeader
from deltaserve.store import Store, base_key

BASE_FILE = "base.json"


@dataclass(frozen=True, slots=True)
class Base:
    """What is known of the base without its contents.

    Attributes:
        folder: its checkpoint.
        fingerprint: see deltaserve.delta.fingerprint.
        config: contents of config.json.
        tensors: tensor table by name.
    """

    folder: Path
    fingerprint: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]

    @classmethod
    def open(cls, folder: Path, cache: Path) -> Base:
        """Reads a base; its fingerprint is kept in `cache`, since it takes a pass over all weights. Blocks.

        Raises:
            DeltaServeError: it is no supported checkpoint.
        """
        checkpoint = Checkpoint.open(folder)
        return cls(folder, cached_fingerprint(checkpoint, cache), checkpoint.config, checkpoint.tensors)

    def files(self) -> list[Path]:
        """Returns the files that make up the base: weights, their index, config, tokenizer."""
        side = Checkpoint.open(self.folder).side_files().values()
        weights = {tensor.file for tensor in self.tensors.values()}
        index = self.folder.glob("*.safetensors.index.json")
        return sorted({*side, *weights, *index})


async def register(store: Store, base: Base) -> None:
    """Copies the base into the store, `bases/<fingerprint>/base.json` last; does nothing if that is there already."""
    key = base_key(base.fingerprint, BASE_FILE)
    if await store.exists(key):
        return
    entries = []
    for path in await asyncio.to_thread(base.files):
        await store.put_file_new(base_key(base.fingerprint, path.name), path)
        entries.append(await asyncio.to_thread(_entry, path))
    tensors = [{"name": t.name, "dtype": t.dtype, "shape": t.shape} for t in base.tensors.values()]
    record = {"fingerprint": base.fingerprint, "config": dict(base.config), "files": entries, "tensors": tensors}
    await store.put_new(key, json.dumps(record, indent=1).encode())


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": path.name, "size": path.stat().st_size, "sha256": digest}
