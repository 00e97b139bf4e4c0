"""What a model's generation_config.json says about sampling and the end of a sequence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.worker.front.ranges import RANGES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Values where a request says nothing.

    Attributes:
        sampling: SamplingParams fields by name.
        eos: token ids that end a sequence.
    """

    sampling: Mapping[str, float] = field(default_factory=dict)
    eos: tuple[int, ...] = ()


def generation_defaults(
    generation_config: Mapping[str, Any], config: Mapping[str, Any], tokenizer_eos: int | None, owner: str
) -> GenerationDefaults:
    """Reads both configs; a value out of range is left out and logged, so that it cannot make a model unusable.

    `do_sample: false` means greedy. End-of-sequence tokens come from generation_config.json, else config.json, else the
    tokenizer.
    """
    sampling = {}
    for name, limits in RANGES.items():
        value = generation_config.get(name)
        if value is None:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and limits.holds(value):
            sampling[name] = value
        else:
            log.warning("%s: generation_config.json has %s %r; expected %s; left out", owner, name, value, limits)
    if generation_config.get("do_sample") is False:
        sampling["temperature"] = 0.0
    for source in (generation_config, config):
        if eos := _ids(source.get("eos_token_id")):
            return GenerationDefaults(sampling, eos)
    return GenerationDefaults(sampling, () if tokenizer_eos is None else (tokenizer_eos,))


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if type(v) is int and 0 <= v < 1 << 31)
