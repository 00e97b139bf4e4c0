"""What an adapter_config.json of PEFT says, as far as it decides the arithmetic of a LoRA. Free of torch and of I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from deltaserve.errors import FormatError, UnsupportedModelError

Number = TypeVar("Number", int, float)

ADAPTER_CONFIG = "adapter_config.json"
MERGE_IT = "Merge the adapter (PEFT: merge_and_unload, save_pretrained) and upload the merged checkpoint"

# W + s·B·A is not what these compute, or not of the base's own weights
_FOREIGN = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "megatron_config",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # which leave the base's weights as they are

_MAX_PATTERNS = 20_000
_MAX_PATTERN_LENGTH = 200
_MAX_FREE = 3  # wildcards and groups of a pattern, and
_MAX_FREE_PATTERNS = 16  # patterns that have any: what matching takes stays bounded
_PATTERN = re.compile(r"\^?(?:[\w-]|\\\.|\.[*+]?|\\d\+?|\[0-9\]\+?|\((?:\?:)?[\w|-]*+\))*+\$?")
_FREE = re.compile(r"\.[*+]|\\d|\[|\(")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of adapter_config.json that counts.

    Attributes:
        rank: r of all modules that no pattern speaks of.
        alpha: lora_alpha of the same.
        ranks, alphas: r and lora_alpha by pattern; the first pattern that matches a module's name or its end counts.
        rank_stabilised: scaling is alpha / √r instead of alpha / r.
        saved: names, or ends of names, of the modules that are trained whole.
        keeps_tying: what is done to a tied embedding is done to lm_head too.
        biases: biases are trained: "none", "all" or "lora_only".
        base_name: what the adapter calls its base; a name only, which proves nothing.
    """

    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]
    rank_stabilised: bool
    saved: tuple[str, ...]
    keeps_tying: bool
    biases: str
    base_name: str

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module, e.g. of "model.layers.0.mlp.up_proj"."""
        return _matching(self.ranks, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """Returns s of Δ = s·B·A."""
        rank = self.rank_of(module)
        return _matching(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def parse_adapter_config(config: Mapping[str, Any]) -> AdapterConfig:
    """Reads the contents of an adapter_config.json.

    Raises:
        FormatError: a field is missing or of another type than PEFT gives it.
        UnsupportedModelError: another method than LoRA, or a kind of LoRA that is not W + s·B·A.
    """
    _check_supported(config)
    saved = config.get("modules_to_save") or ()
    if not isinstance(saved, list | tuple) or not all(isinstance(name, str) for name in saved):
        raise FormatError(f"{ADAPTER_CONFIG}: modules_to_save is {str(saved)[:200]}; expected a list of names or null")
    biases = config.get("bias", "none")
    if biases not in ("none", "all", "lora_only"):
        raise FormatError(f"{ADAPTER_CONFIG}: bias is {str(biases)[:80]!r}; expected 'none', 'all' or 'lora_only'")
    return AdapterConfig(
        rank=_rank("r", config.get("r")),
        alpha=_alpha("lora_alpha", config.get("lora_alpha")),
        ranks={pattern: _rank("rank_pattern", value) for pattern, value in _patterns(config, "rank_pattern")},
        alphas={pattern: _alpha("alpha_pattern", value) for pattern, value in _patterns(config, "alpha_pattern")},
        rank_stabilised=_flag(config, "use_rslora"),
        saved=tuple(saved),
        keeps_tying=_flag(config, "ensure_weight_tying"),
        biases=biases,
        base_name=str(config.get("base_model_name_or_path") or "")[:1000],
    )


def _check_supported(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{ADAPTER_CONFIG}: peft_type is {str(kind)[:80]!r}; only 'LORA' can be served as it is. {MERGE_IT}"
        )
    for field in _FOREIGN:
        if config.get(field):
            raise UnsupportedModelError(
                f"{ADAPTER_CONFIG}: {field} is {str(config[field])[:80]}; expected it unset, because then the adapter "
                f"is not W + s·B·A. {MERGE_IT}",
                setting=field,
            )
    start = config.get("init_lora_weights", True)
    if not any(start is plain or (isinstance(plain, str) and start == plain) for plain in _PLAIN_STARTS):
        raise UnsupportedModelError(
            f"{ADAPTER_CONFIG}: init_lora_weights is {str(start)[:80]!r}, which changes the base's own weights before "
            "training. Save the adapter converted to a plain LoRA (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion), or upload the merged checkpoint",
            setting="init_lora_weights",
        )


def _flag(config: Mapping[str, Any], field: str) -> bool:
    value = config.get(field)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{ADAPTER_CONFIG}: {field} is {str(value)[:80]!r}; expected true or false")
    return bool(value)


def _rank(field: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise FormatError(f"{ADAPTER_CONFIG}: {field} has {str(value)[:80]}; expected a positive whole number")
    return value


def _alpha(field: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise FormatError(f"{ADAPTER_CONFIG}: {field} has {str(value)[:80]}; expected a finite number")
    return float(value)


def _patterns(config: Mapping[str, Any], field: str) -> Iterable[tuple[re.Pattern[str], Any]]:
    """Yields compiled patterns and their values in order; a pattern matches a whole name, or its end after a dot."""
    found = config.get(field) or {}
    if not isinstance(found, dict) or len(found) > _MAX_PATTERNS:
        raise FormatError(f"{ADAPTER_CONFIG}: {field} is {str(found)[:200]}; expected an object of names and numbers")
    free_patterns = 0
    for text, value in found.items():
        free = len(_FREE.findall(text))
        free_patterns += free > 0
        if (
            len(text) > _MAX_PATTERN_LENGTH
            or not _PATTERN.fullmatch(text)
            or free > _MAX_FREE
            or free_patterns > _MAX_FREE_PATTERNS
        ):
            raise FormatError(
                f"{ADAPTER_CONFIG}: {field} has the pattern {text[:80]!r}; expected names such as "
                f"'model.layers.0.mlp.up_proj' or 'up_proj', or at most {_MAX_FREE_PATTERNS} patterns with at most "
                f"{_MAX_FREE} of .* .+ \\d+ [0-9]+ (a|b). Write the modules out by name"
            )
        yield re.compile(rf"(?:.*\.)?(?:{text})$"), value


def _matching(patterns: Mapping[re.Pattern[str], Number], module: str, default: Number) -> Number:
    return next((value for pattern, value in patterns.items() if pattern.match(module)), default)
