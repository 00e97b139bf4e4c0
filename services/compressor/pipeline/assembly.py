"""Puts finished parts together: payload, side files, manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from deltaserve.delta.manifest import BaseRef, Manifest
from deltaserve.delta.reader import file_sha256
from deltaserve.delta.writer import Identity
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.parts import Parts
from services.compressor.pipeline.spec import Spec
from services.compressor.pipeline.text import has_tokenizer

_REVISION = "1"  # publication replaces it


@dataclass(frozen=True)
class Assembly:
    """The result of a run in `spec.out`. A fine-tune without a tokenizer is served with the base's."""

    spec: Spec
    pair: Pair
    fingerprint: str

    def assemble(self, parts: Parts) -> Manifest:
        """Writes payload, side files and manifest anew."""
        shutil.rmtree(self.spec.out, ignore_errors=True)
        base = BaseRef(fingerprint=self.fingerprint, architecture=self.pair.base.architecture)
        identity = Identity(self.spec.model, _REVISION, parts.created, base, self.pair.tuned.config)
        options = {name: value for name, value in msgspec.structs.asdict(self.spec.options).items() if value}
        made = options if self.pair.origin is None else {"adapter": self.pair.origin}
        compression = {**made, "torch": torch.__version__.split("+")[0]}
        return parts.writer.finish(
            self.spec.out, identity, files=self._files(), base_files=self._base_files, compression=compression
        )

    def side_bytes(self) -> int:
        """Returns the bytes of the side files that are not the base's."""
        ours, theirs = self._files(), self._base_files
        return sum(
            path.stat().st_size
            for name, path in ours.items()
            if name not in theirs or file_sha256(path) != file_sha256(theirs[name])
        )

    def _files(self) -> Mapping[str, Path]:
        files = self.pair.tuned.side_files()
        return files if has_tokenizer(self.pair.tuned) else self._base_files | files

    @property
    def _base_files(self) -> dict[str, Path]:
        return self.pair.base.side_files()
