"""What one run of the pipeline is to do, as its specification file says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from deltaserve.errors import InvalidArgumentError

LinearCodec = Literal[
    "sign1",
    "vector8",
    "vector12",
    "vector16",
    "vector24",
    "ternary",
    "int2",
    "int3",
    "int4",
    "sparse24_int2",
    "sparse24_int4",
    "exact",
    "dense",
]
EmbeddingCodec = Literal["sign1", "vector8", "ternary", "int2", "int3", "int4", "exact", "dense"]
Preset = Literal["tiny", "balanced", "faithful", "exact"]

PRESET_BITS: Mapping[Preset, float] = {"tiny": 1.1, "balanced": 2.0, "faithful": 4.0}
"""Budgets of presets in stored bits a parameter of the whole checkpoint; `exact` has none."""

_CODEC = "int4"  # of linears and embeddings when nothing is asked for


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Options(_Strict, frozen=True, kw_only=True):
    """How to compress; fields as in deltaserve.v1.CompressionOptions.

    At most one of `codec`, `preset`, `bits_per_param` and `smallest` is set. With none of them linears get int4.
    """

    codec: LinearCodec | None = None
    embedding_codec: EmbeddingCodec | None = None
    preset: Preset | None = None
    bits_per_param: float | None = None
    smallest: bool = False
    group_size: int = 128
    calibration_samples: int = 256
    calibration_tokens: int = 512
    lossless: bool = False

    @property
    def budget(self) -> float | None:
        """Stored bits a parameter that allocation may spend; None when there is no such budget."""
        return self.bits_per_param if self.preset is None else PRESET_BITS.get(self.preset)

    @property
    def allocates(self) -> bool:
        """Whether codecs are chosen tensor by tensor from the first attempt on."""
        return self.budget is not None or self.smallest

    @property
    def linear_codec(self) -> str:
        """Codec of linears where it is fixed."""
        return "exact" if self.preset == "exact" else self.codec or _CODEC

    @property
    def fixed_embedding_codec(self) -> str:
        """Codec of embeddings and lm_head where it is fixed."""
        return self.embedding_codec or ("exact" if self.preset == "exact" else _CODEC)

    def check(self) -> None:
        """Raises InvalidArgumentError when options contradict each other or are out of range."""
        asked = [name for name in ("codec", "preset", "bits_per_param", "smallest") if getattr(self, name)]
        if len(asked) > 1:
            raise InvalidArgumentError(f"{' and '.join(asked)} are set; expected at most one of them", field=asked[1])
        if self.group_size < 0 or self.group_size % 16:
            raise InvalidArgumentError(
                f"group_size is {self.group_size}; expected 0 or a multiple of 16", field="group_size"
            )
        if self.bits_per_param is not None and not 0 < self.bits_per_param < math.inf:
            raise InvalidArgumentError(
                f"bits_per_param is {self.bits_per_param}; expected more than 0", field="bits_per_param"
            )
        for field in ("calibration_samples", "calibration_tokens"):
            if (value := getattr(self, field)) < 1:
                raise InvalidArgumentError(f"{field} is {value}; expected 1 or more", field=field)


class Policy(_Strict, frozen=True, kw_only=True):
    """What the report must meet; fields as in deltaserve.v1.QualityPolicy."""

    max_kl: float | None = None
    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
    max_bits_per_param: float | None = None

    @property
    def judges_quality(self) -> bool:
        """Whether it limits more than size."""
        return any(limit is not None for limit in (self.max_kl, self.min_agreement, self.max_accuracy_drop))


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
        device_bytes: most of a GPU's memory that a run takes, CUDA's own aside.
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
    device_bytes: int = 21 << 30

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
    spec.options.check()
    if spec.options.smallest and not spec.policy.judges_quality:
        raise InvalidArgumentError(
            "smallest looks for the smallest size that meets the quality policy, and there is none; set max_kl, "
            "min_agreement or max_accuracy_drop",
            field="smallest",
        )
    return spec


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected a {kind.__name__}, got {str(value)[:80]!r}")
