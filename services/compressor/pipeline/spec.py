"""What one run of the pipeline is to do, as its specification file says it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from deltaserve.errors import InvalidArgumentError

LinearCodec = Literal["sign1", "int2", "int3", "int4", "dense"]
EmbeddingCodec = Literal["int4", "int3", "int2", "dense"]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Options(_Strict, frozen=True, kw_only=True):
    """How to compress; fields as in deltaserve.v1.CompressionOptions."""

    codec: LinearCodec = "int4"
    embedding_codec: EmbeddingCodec = "int4"
    group_size: int = 128
    calibration_samples: int = 256
    calibration_tokens: int = 512


class Policy(_Strict, frozen=True, kw_only=True):
    """What the report must meet; fields as in deltaserve.v1.QualityPolicy."""

    max_kl: float | None = None
    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
    max_bits_per_param: float | None = None


class Spec(_Strict, frozen=True, kw_only=True):
    """One run.

    Attributes:
        base: folder of the base.
        tuned: folder of the fine-tune.
        work: folder that outlives restarts: finished layers, and the result in `out/`.
        model: name that the manifest is made for.
        options: how to compress.
        policy: what the report must meet.
        calibration: JSONL file; None for the built-in set.
        evaluation: labelled JSONL file; None for no accuracy.
        device: torch device.
        threads: torch threads; 0 for torch's own choice.
        base_fingerprint: of the base when the caller knows it, which saves a pass over its weights.
        memory_bytes: most that hidden states take of the host's memory; the rest goes to files in `work`.
    """

    base: Path
    tuned: Path
    work: Path
    model: str = "model"
    options: Options = Options()
    policy: Policy = Policy()
    calibration: Path | None = None
    evaluation: Path | None = None
    device: str = "cpu"
    threads: int = 0
    base_fingerprint: str | None = None
    memory_bytes: int = 2 << 30

    @property
    def out(self) -> Path:
        """Folder of the result."""
        return self.work / "out"


def load_spec(path: Path) -> Spec:
    """Reads a specification file. Raises InvalidArgumentError when it is malformed."""
    try:
        spec = msgspec.json.decode(path.read_bytes(), type=Spec, dec_hook=_path)
    except (msgspec.MsgspecError, OSError) as error:
        raise InvalidArgumentError(f"{path.name}: {error}", field="spec") from error
    group = spec.options.group_size
    if group < 0 or group % 16:
        raise InvalidArgumentError(f"group_size is {group}; expected 0 or a multiple of 16", field="group_size")
    for field in ("calibration_samples", "calibration_tokens"):
        if (value := getattr(spec.options, field)) < 1:
            raise InvalidArgumentError(f"{field} is {value}; expected 1 or more", field=field)
    return spec


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected a {kind.__name__}, got {str(value)[:80]!r}")
