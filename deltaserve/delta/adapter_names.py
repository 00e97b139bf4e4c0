"""The names of tensors in an adapter_model.safetensors of PEFT, by what they are for. Free of torch and of I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from deltaserve.delta.adapter_config import MERGE_IT
from deltaserve.errors import InvalidArgumentError, UnsupportedModelError

PREFIX = "base_model.model."

_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_EMBEDDING_FACTOR = re.compile(r"(.+)\.lora_embedding_([AB])(?:\.default)?(?:\.weight)?")
_WHOLE = re.compile(r"(.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(weight|bias)")
_DORA = ".lora_magnitude_vector"


@dataclass(slots=True)
class NamedFactors:
    """The names of a module's factors.

    Attributes:
        embedding: they are lora_embedding_A and _B, whose product is the transposed delta.
        a, b: names in the file; empty while not found.
    """

    embedding: bool
    a: str = ""
    b: str = ""


@dataclass(slots=True)
class NamedParts:
    """The names in a file.

    Attributes:
        factors: by module, e.g. "model.layers.0.mlp.up_proj".
        whole: names of tensors stored whole, by the model's own name of them, e.g. "lm_head.weight".
    """

    factors: dict[str, NamedFactors] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


def sort_names(names: Iterable[str]) -> NamedParts:
    """Sorts the names of a file by what they are for.

    Raises:
        InvalidArgumentError: a name that PEFT gives to no part of a LoRA, one that is there twice, or half a pair.
        UnsupportedModelError: the tensors of a DoRA.
    """
    parts = NamedParts()
    for name in names:
        if _DORA in name:
            raise UnsupportedModelError(
                f"adapter: tensor {name[:200]!r} belongs to a DoRA, which is not W + s·B·A. {MERGE_IT}"
            )
        own = name.removeprefix(PREFIX)
        if own == name or not _sort(parts, name, own):
            raise InvalidArgumentError(
                f"adapter: tensor {name[:200]!r} is no part of a LoRA; expected names as PEFT saves them: "
                f"{PREFIX}<module>.lora_A.weight, .lora_B.weight, .lora_embedding_A, .lora_embedding_B, or of a module "
                "that is saved whole .weight, .bias. Save it with PEFT's save_pretrained",
                field="tensors",
            )
    for module, pair in parts.factors.items():
        if not (pair.a and pair.b):
            there, lacking = ("A", "B") if pair.a else ("B", "A")
            raise InvalidArgumentError(
                f"adapter: module {module[:200]!r} has lora_{there} and no lora_{lacking}; expected both",
                field="tensors",
            )
    if not parts.factors and not parts.whole:
        raise InvalidArgumentError("adapter: there are no tensors; expected those of a LoRA", field="tensors")
    return parts


def _sort(parts: NamedParts, name: str, own: str) -> bool:
    found = _FACTOR.fullmatch(own)
    embedding = _EMBEDDING_FACTOR.fullmatch(own)
    if match := found or embedding:
        pair = parts.factors.setdefault(match[1], NamedFactors(embedding is not None))
        former = pair.a if match[2] == "A" else pair.b
        if former or pair.embedding != (embedding is not None):
            _refuse_twice(match[1], former or pair.a or pair.b, name)
        setattr(pair, match[2].lower(), name)
        return True
    whole = None if ".lora_" in own else _WHOLE.fullmatch(own)
    if whole is None:
        return False
    target = f"{whole[1]}.{whole[2]}"
    if target in parts.whole:
        _refuse_twice(target, parts.whole[target], name)
    parts.whole[target] = name
    return True


def _refuse_twice(owner: str, former: str, name: str) -> None:
    raise InvalidArgumentError(
        f"adapter: {former[:200]!r} and {name[:200]!r} are both of {owner[:200]!r}; expected one of them",
        field="tensors",
    )
