"""The identity of a base."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.fingerprint import cached_fingerprint, fingerprint
from deltaserve.delta.headers import INDEX_FILE

from .conftest import WriteModel, random_weights, tiny_config


def test_depends_on_contents_names_and_dtypes_only(write_model: WriteModel, tmp_path: Path) -> None:
    config, weights = tiny_config(), random_weights(tiny_config(), 0)
    whole = write_model("a", config, weights)
    names = sorted(weights)
    files = {"x.safetensors": names[:5], "y.safetensors": names[5:]}
    (tmp_path / "sharded").mkdir()
    for file, held in files.items():
        values = {name: weights[name].bfloat16() for name in held}
        save_file(values, tmp_path / "sharded" / file, metadata={"other": "metadata"})
    weight_map = {name: file for file, held in files.items() for name in held}
    (tmp_path / "sharded" / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "sharded" / "config.json").write_text(json.dumps(config))
    assert fingerprint(Checkpoint.open(tmp_path / "sharded")) == fingerprint(whole)
    assert fingerprint(write_model("f16", config, weights, torch.float16)) != fingerprint(whole)
    changed = {**weights, "model.norm.weight": weights["model.norm.weight"] + 1}
    assert fingerprint(write_model("changed", config, changed)) != fingerprint(whole)


def test_cache_follows_the_files(write_model: WriteModel, tmp_path: Path) -> None:
    checkpoint = write_model("a", tiny_config(), random_weights(tiny_config(), 0))
    cache = tmp_path / "cache"
    value = cached_fingerprint(checkpoint, cache)
    assert value == fingerprint(checkpoint)
    (kept,) = cache.iterdir()
    kept.write_text("f" * 64)
    assert cached_fingerprint(checkpoint, cache) == "f" * 64
    os.utime(checkpoint.folder / "model.safetensors", ns=(1, 1))
    assert cached_fingerprint(checkpoint, cache) == value
