"""A LoRA adapter together with its base, read like the checkpoint of the fine-tune that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from deltaserve.delta.adapter import ADAPTER_WEIGHTS, Adapter, Described, Factors, holds_adapter, read_adapter
from deltaserve.delta.adapter_config import ADAPTER_CONFIG
from deltaserve.delta.architectures import architecture_of, ties_embeddings
from deltaserve.delta.checkpoint import CONFIG_FILE, Checkpoint, read_config
from deltaserve.delta.classes import LM_HEAD
from deltaserve.delta.coding import code_exact, code_factors, code_same
from deltaserve.delta.compatibility import base_tensor_of
from deltaserve.delta.dtypes import TORCH_DTYPES
from deltaserve.delta.headers import read_header
from deltaserve.delta.packed import PackedTensor, fit_rows
from deltaserve.errors import InvalidArgumentError

_FROM_BASE = (CONFIG_FILE, "generation_config.json")


@dataclass(frozen=True)
class AdaptedCheckpoint:
    """The fine-tune W + s·B·A; nothing of its size is stored or kept in memory.

    Attributes:
        base: what the adapter is for.
        stored: the adapter itself: its folder, contents of adapter_config.json, tensors by their names in its file.
        adapter: what it makes of the base.
    """

    base: Checkpoint
    stored: Checkpoint
    adapter: Adapter

    @classmethod
    def open(cls, folder: Path, base: Checkpoint) -> AdaptedCheckpoint:
        """Reads config and headers of an adapter.

        Raises:
            DeltaServeError: it is malformed, not supported, or does not fit the base; see read_adapter.
        """
        config, headers = read_config(folder / ADAPTER_CONFIG), read_header(folder / ADAPTER_WEIGHTS)
        stored = Checkpoint(folder, MappingProxyType(config), MappingProxyType(headers))
        return cls(base, stored, read_adapter(config, headers, base.config, base.tensors))

    @property
    def folder(self) -> Path:
        """Where the adapter lies."""
        return self.stored.folder

    @property
    def config(self) -> Mapping[str, Any]:
        """The fine-tune's config.json: the base's, but for vocabulary and tying."""
        return self.adapter.config

    @property
    def tensors(self) -> Mapping[str, Described]:
        """The fine-tune's tensor table by name."""
        return self.adapter.tensors

    @cached_property
    def architecture(self) -> str:
        """The architecture's name; raises UnsupportedModelError when it is not a supported one."""
        return architecture_of(self.config)

    @property
    def tied(self) -> bool:
        """Whether lm_head is the embedding."""
        return ties_embeddings(self.config) and LM_HEAD not in self.tensors

    @property
    def origin(self) -> dict[str, Any]:
        """What manifests tell of the adapter."""
        settings = self.adapter.settings
        return {
            "base_model_name_or_path": settings.base_name,
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "use_rslora": settings.rank_stabilised,
        }

    def read(self, name: str) -> torch.Tensor:
        """Returns one tensor of the fine-tune on the CPU; adapted ones in float32, unrounded.

        Raises:
            InvalidArgumentError: there is no such tensor.
            DataLossError: a file ends early: it changed since it was opened.
        """
        weights, factors = self._unadapted(name), self.adapter.factors.get(name)
        if factors is None:
            return weights
        a, b = self.stored.read(factors.a).float(), self.stored.read(factors.b).float()
        delta = factors.scaling * (b @ a)
        merged = weights.float() + (delta.T if factors.embedding else delta)
        return merged if self._on_base(name, factors, weights) else merged.to(weights.dtype)

    def packed(self, name: str) -> PackedTensor:
        """Returns one tensor in packed form: the adapter's own factors, `same` for what it leaves alone, else exact.

        Raises:
            InvalidArgumentError: there is no such tensor, or it holds NaN or infinity.
            DataLossError: a file ends early: it changed since it was opened.
        """
        described, source = self._described(name), base_tensor_of(name, self.base.tensors)
        dtype, factors = TORCH_DTYPES[described.dtype], self.adapter.factors.get(name)
        if factors is None and name not in self.adapter.whole:
            return code_same(name, described.shape, dtype, source)
        if factors is not None and self._on_base(name, factors, None):
            left, right = self._factors(factors)
            return code_factors(name, left, right, described.shape, dtype, source)
        base = fit_rows(self.base.read(source), described.shape[0])
        return code_exact(name, self.read(name), base, source)

    def check_contents(self) -> None:
        """Reads all that is stored. Raises InvalidArgumentError for NaN, infinity, or copies that differ."""
        self.stored.check_contents()
        for first, second in self.adapter.copies:
            if first != second and not torch.equal(self.stored.read(first), self.stored.read(second)):
                raise InvalidArgumentError(
                    f"adapter: {first!r} and {second!r} differ, and the base ties them; expected equal contents, "
                    f"or both in modules_to_save of {ADAPTER_CONFIG}",
                    field="files",
                )

    def side_files(self) -> dict[str, Path]:
        """Returns tokenizer, chat template and the like of the adapter, and the configs of its base, by name."""
        theirs = {name: path for name, path in self.base.side_files().items() if name in _FROM_BASE}
        return theirs | {name: path for name, path in self.stored.side_files().items() if name != CONFIG_FILE}

    def _described(self, name: str) -> Described:
        described = self.tensors.get(name)
        if described is None:
            raise InvalidArgumentError(f"the base adapted by {self.folder.name!r} has no tensor {name[:200]!r}")
        return described

    def _unadapted(self, name: str) -> torch.Tensor:
        described, factors = self._described(name), self.adapter.factors.get(name)
        stored = self.adapter.whole.get(name) if factors is None else factors.whole
        if stored is not None:
            return self.stored.read(stored)
        return fit_rows(self.base.read(base_tensor_of(name, self.base.tensors)), described.shape[0])

    def _on_base(self, name: str, factors: Factors, weights: torch.Tensor | None) -> bool:
        """Tells whether the factors are added to the base's own tensor: PEFT may save it along, or a resized one."""
        if factors.whole is None:
            return True
        stored = self.stored.read(factors.whole) if weights is None else weights
        base = self.base.read(base_tensor_of(name, self.base.tensors))
        return torch.equal(stored.float(), fit_rows(base, stored.shape[0]).float())

    def _factors(self, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns left [N, r], which the scaling is folded into, and right [r, K]; in float32 if that is not exact."""
        a, b = self.stored.read(factors.a), self.stored.read(factors.b)
        left, right = (a.T, b.T) if factors.embedding else (b, a)
        scaled = left.float() * factors.scaling
        narrow = scaled.to(left.dtype)
        if left.dtype == right.dtype and torch.equal(narrow.float(), scaled):
            return narrow, right
        return scaled, right.float()


FineTune = Checkpoint | AdaptedCheckpoint
"""What can be compressed: a checkpoint of its own, or an adapter with its base."""


def open_fine_tune(folder: Path, base: Checkpoint) -> FineTune:
    """Opens a folder that holds a checkpoint or an adapter of the base.

    Raises:
        DeltaServeError: see Checkpoint.open, AdaptedCheckpoint.open and holds_adapter.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return AdaptedCheckpoint.open(folder, base) if holds_adapter(names) else Checkpoint.open(folder)
