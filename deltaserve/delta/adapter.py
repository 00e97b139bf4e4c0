"""A LoRA adapter of PEFT as a fine-tune of its base: which tensors it changes, and how. Free of torch and of I/O.

What is described is what PEFT computes while it trains. That differs from a merge in one place: PEFT's LoRA of an
embedding leaves a tied lm_head alone, so the fine-tune is untied then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deltaserve.delta.adapter_config import ADAPTER_CONFIG, MERGE_IT, AdapterConfig, parse_adapter_config
from deltaserve.delta.adapter_names import NamedFactors, NamedParts, sort_names
from deltaserve.delta.architectures import ties_embeddings
from deltaserve.delta.classes import EMBEDDING, LM_HEAD, classify, is_derived
from deltaserve.delta.compatibility import WEIGHT_DTYPES, Tensors, base_tensor_of
from deltaserve.delta.headers import INDEX_FILE, SINGLE_FILE, refuse_pickle
from deltaserve.errors import InvalidArgumentError, UnsupportedModelError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Described:
    """Dtype and shape of a tensor of the fine-tune that an adapter makes of its base."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Factors:
    """How a weight W [N, K] is adapted: W + s·B·A, or W + s·(B·A)ᵀ for an embedding.

    Attributes:
        a, b: names in the adapter's file; A [r, K] and B [N, r], or of an embedding A [r, N] and B [K, r].
        scaling: s.
        embedding: which of the two it is.
        whole: name in the adapter's file of the W that this is added to; None for the base's.
    """

    a: str
    b: str
    scaling: float
    embedding: bool
    whole: str | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter makes of its base.

    Attributes:
        config: config.json of the fine-tune.
        tensors: the fine-tune's tensor table by name.
        factors: LoRAs by name of the fine-tune's tensor.
        whole: names in the adapter's file of tensors that replace the base's, by name of the fine-tune's tensor.
        copies: pairs of names in the adapter's file whose contents must be equal: a tied embedding saved twice.
        settings: what the adapter's own config says.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Described]
    factors: Mapping[str, Factors]
    whole: Mapping[str, str]
    copies: tuple[tuple[str, str], ...]
    settings: AdapterConfig


def holds_adapter(names: Iterable[str]) -> bool:
    """Tells whether files of these names are an adapter rather than a checkpoint.

    Raises:
        InvalidArgumentError: they are both, or an adapter without its weights in safetensors.
    """
    there = set(names)
    if ADAPTER_CONFIG not in there:
        if ADAPTER_WEIGHTS in there and not there & {SINGLE_FILE, INDEX_FILE}:
            raise InvalidArgumentError(f"{ADAPTER_WEIGHTS} is there without its {ADAPTER_CONFIG}", field="files")
        return False
    if there & {SINGLE_FILE, INDEX_FILE}:
        raise InvalidArgumentError(
            f"there are both {ADAPTER_CONFIG} and the weights of a whole checkpoint; expected one of them: move the "
            "adapter's files or the checkpoint's elsewhere",
            field="files",
        )
    if ADAPTER_WEIGHTS not in there:
        refuse_pickle(there & {_PICKLED_WEIGHTS})
        raise InvalidArgumentError(
            f"{ADAPTER_CONFIG} is there without {ADAPTER_WEIGHTS}; expected both (PEFT: save_pretrained)", field="files"
        )
    return True


def read_adapter(
    config: Mapping[str, Any], table: Tensors, base_config: Mapping[str, Any], base_tensors: Tensors
) -> Adapter:
    """Returns what an adapter makes of a base. That it makes a sound fine-tune is for `check_compatible` to say.

    Args:
        config: contents of adapter_config.json.
        table: dtype and shape of the tensors in adapter_model.safetensors by name.
        base_config: contents of the base's config.json.
        base_tensors: the base's tensor table by name.

    Raises:
        FormatError: a malformed config, or factors of another rank than it says.
        UnsupportedModelError: not a LoRA, or one that is not W + s·B·A.
        InvalidArgumentError: a tensor that is unknown, unpaired, not in the base, or of a wrong dtype or shape.
    """
    settings = parse_adapter_config(config)
    parts = sort_names(table)
    _check_dtypes(table)
    _check_targets(parts, settings, base_tensors)
    factors: dict[str, Factors] = {}
    whole = dict(parts.whole)
    for module, named in parts.factors.items():
        name = f"{module}.weight"
        factors[name] = _factors(module, named, settings, whole.pop(name, None))
    untied, copies = _tie(factors, whole, settings, base_tensors)
    tensors = _tensors(factors, whole, untied, table, base_tensors)
    for name, factor in factors.items():
        _check_shapes(name, factor, table, tensors[name].shape, settings)
    return Adapter(_config(base_config, tensors), tensors, factors, whole, copies, settings)


def _check_dtypes(table: Tensors) -> None:
    for name, tensor in table.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            raise InvalidArgumentError(
                f"adapter: {name[:200]!r} has dtype {tensor.dtype[:40]!r}; expected one of {', '.join(WEIGHT_DTYPES)}",
                field="tensors",
            )


def _check_targets(parts: NamedParts, settings: AdapterConfig, base_tensors: Tensors) -> None:
    for module in parts.factors:
        name = f"{module}.weight"
        _check_known(name, base_tensors)
        kind = classify(name, base_tensors[base_tensor_of(name, base_tensors)].shape)
        if kind not in ("linear", "embedding", "lm_head") or parts.factors[module].embedding != (kind == "embedding"):
            expected = "lora_embedding_A and _B" if kind == "embedding" else "lora_A and lora_B of a linear"
            raise InvalidArgumentError(
                f"adapter: the factors of {module[:200]!r}, a {kind} of the base, are of another kind; "
                f"expected {expected}",
                field="tensors",
            )
    for name in parts.whole:
        _check_known(name, base_tensors)
        if settings.biases != "none" and name.endswith(".bias"):
            raise UnsupportedModelError(
                f"{ADAPTER_CONFIG}: bias is {settings.biases!r} and there is {name!r}; expected 'none'. {MERGE_IT}",
                setting="bias",
            )


def _check_known(name: str, base_tensors: Tensors) -> None:
    if base_tensor_of(name, base_tensors) not in base_tensors or is_derived(name):
        raise InvalidArgumentError(
            f"adapter: {name[:200]!r} is not in the base, whose layers are 0 to {_last_layer(base_tensors)}; expected "
            "modules of the base. Was the adapter trained on another model?",
            field="tensors",
        )


def _last_layer(base_tensors: Tensors) -> int:
    numbers = [name.split(".")[2] for name in base_tensors if name.startswith("model.layers.")]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _factors(module: str, named: NamedFactors, settings: AdapterConfig, whole: str | None) -> Factors:
    return Factors(named.a, named.b, settings.scaling_of(module), named.embedding, whole)


def _tie(
    factors: Mapping[str, Factors], whole: dict[str, str], settings: AdapterConfig, base_tensors: Tensors
) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Decides whether the fine-tune of a tied base is untied, as it is once PEFT trains one of the two by itself.

    If it stays tied, what is stored for lm_head is taken out of `whole`. Returns whether it is untied, and the copies.
    """
    adapted = EMBEDDING in factors or LM_HEAD in factors
    if LM_HEAD in base_tensors or not (adapted or EMBEDDING in whole or LM_HEAD in whole):
        return False, ()
    if adapted and settings.keeps_tying:
        raise UnsupportedModelError(
            f"{ADAPTER_CONFIG}: ensure_weight_tying with a LoRA of the embedding is not supported. {MERGE_IT}",
            setting="ensure_weight_tying",
        )
    trained = {name.rpartition(".")[2] for name in settings.saved} & {"embed_tokens", "lm_head"}
    if adapted or (trained and not settings.keeps_tying):
        return True, ()
    head = whole.pop(LM_HEAD, None)  # PEFT saves both when the vocabulary was resized
    return False, () if head is None else ((whole.setdefault(EMBEDDING, head), head),)


def _tensors(
    factors: Mapping[str, Factors], whole: Mapping[str, str], untied: bool, table: Tensors, base_tensors: Tensors
) -> dict[str, Described]:
    stored = dict(whole) | {name: factor.whole for name, factor in factors.items() if factor.whole is not None}
    names = [*(name for name in base_tensors if not is_derived(name)), *([LM_HEAD] if untied else [])]
    tensors = {}
    for name in names:
        like = table[stored[name]] if name in stored else base_tensors[base_tensor_of(name, base_tensors)]
        tensors[name] = Described(like.dtype, tuple(like.shape))
    return tensors


def _check_shapes(name: str, factors: Factors, table: Tensors, shape: tuple[int, ...], settings: AdapterConfig) -> None:
    a, b = tuple(table[factors.a].shape), tuple(table[factors.b].shape)
    rank = settings.rank_of(name.removesuffix(".weight"))
    if len(shape) != 2:
        raise InvalidArgumentError(
            f"adapter: {factors.whole!r} has shape {list(shape)[:8]}; expected a matrix", field="tensors"
        )
    rows, columns = shape
    expected = ((rank, rows), (columns, rank)) if factors.embedding else ((rank, columns), (rows, rank))
    if (a, b) != expected:
        raise InvalidArgumentError(
            f"adapter: the factors of {name!r} have shapes A {list(a)[:8]} and B {list(b)[:8]}; rank {rank} of "
            f"{ADAPTER_CONFIG} and the base's {list(shape)} call for A {list(expected[0])} and B {list(expected[1])}",
            field="tensors",
        )
    if rank > min(shape):
        raise InvalidArgumentError(
            f"adapter: {name!r} of shape {list(shape)} has rank {rank}; expected at most {min(shape)}. {MERGE_IT}",
            field="tensors",
        )


def _config(base_config: Mapping[str, Any], tensors: Mapping[str, Described]) -> dict[str, Any]:
    """Returns the base's config with the fine-tune's vocabulary and tying."""
    embedding = tensors.get(EMBEDDING)
    config = dict(base_config)
    if embedding is not None and embedding.shape and embedding.shape[0] != base_config.get("vocab_size"):
        config["vocab_size"] = embedding.shape[0]
    if LM_HEAD in tensors and ties_embeddings(base_config):
        config["tie_word_embeddings"] = False
    return config
