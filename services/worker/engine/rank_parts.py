"""What a rank has of base and memory, whichever rank it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.errors import InvalidArgumentError
from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.config import ModelConfig, read_config
from services.worker.engine.deltas import DeltaBuilder
from services.worker.engine.settings import EngineSettings
from services.worker.engine.shard import Shard
from services.worker.engine.weights import BaseReader, BaseWeights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class RankParts:
    """The base's checkpoint, this rank's part of its weights, and its KV blocks (the same number on every rank)."""

    checkpoint: Checkpoint
    shard: Shard
    dtype: torch.dtype
    device: torch.device
    weights: BaseWeights
    blocks: BlockAllocator
    builder: DeltaBuilder


def read_parts(settings: EngineSettings, rank: int) -> RankParts:
    """Reads the base; raises FormatError, UnsupportedModelError or InvalidArgumentError when it cannot be served."""
    dtype = _dtype(settings.dtype)
    shard = Shard.of(read_config(Path(settings.base_folder), settings.max_context), rank, settings.tensor_parallel)
    blocks = _blocks(settings, shard.local, dtype)
    checkpoint = Checkpoint.open(Path(settings.base_folder))
    device = device_of(settings, rank)
    weights = BaseReader(checkpoint, shard, dtype, device).read()
    return RankParts(checkpoint, shard, dtype, device, weights, blocks, DeltaBuilder(weights, shard))


def threads_of(settings: EngineSettings) -> int:
    """Returns the threads that torch may use in one rank."""
    return settings.threads or max(1, (os.cpu_count() or 2) // (2 * settings.tensor_parallel))


def device_of(settings: EngineSettings, rank: int) -> torch.device:
    """Returns the device of a rank: the first has the one of the settings, the others those after it."""
    device = torch.device(settings.device)
    return device if device.type == "cpu" or not rank else torch.device(device.type, (device.index or 0) + rank)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InvalidArgumentError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}", field="dtype")
    return DTYPES[name]


def _blocks(settings: EngineSettings, config: ModelConfig, dtype: torch.dtype) -> BlockAllocator:
    token_bytes = config.layers * 2 * config.kv_heads * config.head_dim * dtype.itemsize
    count = settings.kv_bytes // (token_bytes * settings.block_size)
    if count < 2:
        raise InvalidArgumentError(
            f"kv_bytes is {settings.kv_bytes}; expected at least {2 * token_bytes * settings.block_size}, two blocks",
            field="kv_bytes",
        )
    return BlockAllocator(count, settings.block_size)
