"""Packs a pair of checkpoints without calibration: what reader, writer and merge are tested on."""

from __future__ import annotations

from pathlib import Path

from deltaserve.delta.architectures import architecture_of
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import classify
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.compatibility import base_tensor_of
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.manifest import BaseRef
from deltaserve.delta.packed import PackedTensor, fit_rows
from deltaserve.delta.reader import DeltaReader
from deltaserve.delta.writer import DeltaWriter, Identity

CREATED = "2026-01-02T03:04:05Z"


def pack_all(base: Checkpoint, tuned: Checkpoint, codec: str, embedding_codec: str = "int4") -> list[PackedTensor]:
    packed = []
    for name, header in tuned.tensors.items():
        weight, kind = tuned.read(name), classify(name, header.shape)
        chosen = codec if kind == "linear" else embedding_codec
        if kind not in ("linear", "embedding", "lm_head") or chosen == "dense":
            packed.append(code_dense(name, weight))
            continue
        source = base_tensor_of(name, base.tensors)
        delta = weight.float() - fit_rows(base.read(source).float(), weight.shape[0])
        params = {"group_size": 16} if chosen.startswith("int") else {}
        packed.append(code_delta(name, delta, weight.dtype, chosen, base=source, params=params))
    return packed


def identity(base: Checkpoint, tuned: Checkpoint) -> Identity:
    reference = BaseRef(fingerprint=fingerprint(base), architecture=architecture_of(base.config))
    return Identity("tiny", "1", CREATED, reference, tuned.config)


def write_delta(
    base: Checkpoint, tuned: Checkpoint, folder: Path, codec: str, embedding_codec: str = "int4"
) -> DeltaReader:
    writer = DeltaWriter(folder / "parts")
    writer.add_part("all", pack_all(base, tuned, codec, embedding_codec))
    writer.finish(
        folder / "out",
        identity(base, tuned),
        files=tuned.side_files(),
        base_files=base.side_files(),
        compression={"codec": codec},
    )
    return DeltaReader.open(folder / "out")
