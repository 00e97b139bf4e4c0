"""Whether a fine-tune, or a packed delta, belongs to a base. Free of torch, and of any tensor's contents.

Everything that is applied to a whole batch at once (sizes, RoPE, activation, windows) must be equal; weights may all
differ, and so may the vocabulary's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from deltaserve.delta.architectures import Shape, architecture_of, expected_shapes
from deltaserve.delta.classes import EMBEDDING, LM_HEAD, classify, is_derived
from deltaserve.delta.manifest import Manifest, TensorEntry
from deltaserve.delta.maths import maths_of
from deltaserve.errors import BaseMismatchError, FormatError, InvalidArgumentError, UnsupportedModelError

WEIGHT_DTYPES = ("BF16", "F16", "F32")


class TensorLike(Protocol):
    """Dtype and shape of a tensor: a TensorHeader, or what an upload declares."""

    @property
    def dtype(self) -> str:
        """Safetensors dtype."""

    @property
    def shape(self) -> Sequence[int]:
        """Dimensions, outermost first."""


Tensors = Mapping[str, TensorLike]


def check_compatible(
    base_config: Mapping[str, Any], base_tensors: Tensors, tuned_config: Mapping[str, Any], tuned_tensors: Tensors
) -> None:
    """Checks that a fine-tuned checkpoint can be coded as a delta of a base.

    Args:
        base_config: contents of the base's config.json.
        base_tensors: the base's tensor table by name.
        tuned_config: contents of the fine-tune's config.json.
        tuned_tensors: the fine-tune's tensor table by name.

    Raises:
        UnsupportedModelError: an architecture that is not supported, or a fine-tune that ties what the base does not.
        BaseMismatchError: another architecture, or a config key that changes the maths differs.
        InvalidArgumentError: a tensor is missing, unexpected, or of the wrong dtype or shape.
        FormatError: a config without the sizes it must have.
    """
    check_complete(base_config, base_tensors, "base")
    _check_configs(base_config, tuned_config)
    check_complete(tuned_config, tuned_tensors, "fine-tune")
    if LM_HEAD in base_tensors and LM_HEAD not in tuned_tensors:
        raise UnsupportedModelError(
            f"the base has its own {LM_HEAD} and the fine-tune ties it to the embedding; save the fine-tune untied"
        )


def check_complete(config: Mapping[str, Any], tensors: Tensors, owner: str) -> None:
    """Checks a checkpoint's tensor table against its own config.

    Args:
        config: contents of config.json.
        tensors: the tensor table by name.
        owner: what messages call it, e.g. "fine-tune".

    Raises:
        UnsupportedModelError, FormatError: see `expected_shapes`.
        InvalidArgumentError: a tensor is missing, unexpected, or of the wrong dtype or shape.
    """
    expected = expected_shapes(config)
    if LM_HEAD in tensors:
        expected[LM_HEAD] = expected[EMBEDDING]
    found = {name: tensor for name, tensor in tensors.items() if not is_derived(name)}
    _check_names(expected, found, owner)
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.dtype not in WEIGHT_DTYPES:
            raise InvalidArgumentError(
                f"{owner}: {name!r} has dtype {tensor.dtype[:40]!r}; expected one of {', '.join(WEIGHT_DTYPES)}",
                field="tensors",
            )
        if tuple(tensor.shape) != shape:
            raise InvalidArgumentError(
                f"{owner}: {name!r} has shape {list(tensor.shape)[:8]}; its config calls for {list(shape)}",
                field="tensors",
            )


def check_delta_against_base(
    manifest: Manifest, base_config: Mapping[str, Any], base_tensors: Tensors, base_fingerprint: str
) -> None:
    """Checks that a packed delta may be applied to a base.

    Args:
        manifest: of the delta.
        base_config: contents of the base's config.json.
        base_tensors: the base's tensor table by name.
        base_fingerprint: see deltaserve.delta.fingerprint.

    Raises:
        BaseMismatchError: it was made for another base, or names a base tensor that is not there or does not fit.
        UnsupportedModelError, InvalidArgumentError, FormatError: see `check_compatible`.
    """
    if manifest.base.fingerprint != base_fingerprint:
        raise BaseMismatchError(
            f"delta {manifest.model!r} was made for the base {manifest.base.fingerprint}; this base is "
            f"{base_fingerprint}",
            expected=manifest.base.fingerprint,
            found=base_fingerprint,
        )
    if manifest.base.architecture != architecture_of(manifest.config):
        raise FormatError(
            f"manifest: base.architecture is {manifest.base.architecture[:100]!r}; "
            f"its config says {architecture_of(manifest.config)!r}"
        )
    check_compatible(base_config, base_tensors, manifest.config, {entry.name: entry for entry in manifest.tensors})
    for entry in manifest.tensors:
        _check_entry(entry, base_tensors)


def base_tensor_of(name: str, base_tensors: Tensors) -> str:
    """Returns the base tensor that a fine-tune's tensor is a delta of: its namesake, or what an untied lm_head was."""
    return EMBEDDING if name == LM_HEAD and LM_HEAD not in base_tensors else name


def _check_entry(entry: TensorEntry, base_tensors: Tensors) -> None:
    if entry.base is None:
        return
    expected = base_tensor_of(entry.name, base_tensors)
    if entry.base != expected or expected not in base_tensors:
        raise BaseMismatchError(
            f"delta tensor {entry.name!r} is coded against the base's {entry.base[:200]!r}; expected {expected!r}"
        )
    shape = tuple(base_tensors[expected].shape)
    resizable = classify(entry.name, entry.shape) in ("embedding", "lm_head")
    if shape[1:] != tuple(entry.shape[1:]) or (shape[0] != entry.shape[0] and not resizable):
        raise BaseMismatchError(
            f"delta tensor {entry.name!r} has shape {entry.shape}; the base's {expected!r} has {list(shape)}"
        )


def _check_configs(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> None:
    architectures = architecture_of(base), architecture_of(tuned)
    if architectures[0] != architectures[1]:
        raise BaseMismatchError(
            f"the fine-tune is a {architectures[1]}; the base is a {architectures[0]}",
            expected=architectures[0],
            found=architectures[1],
        )
    expected, found = maths_of(base), maths_of(tuned)
    for key in expected:
        if expected[key] != found[key]:
            raise BaseMismatchError(
                f"config.json: {key} is {str(found[key])[:200]} in the fine-tune and {str(expected[key])[:200]} in the "
                "base; both must compute alike",
                key=key,
                expected=str(expected[key])[:200],
                found=str(found[key])[:200],
            )


def _check_names(expected: Mapping[str, Shape], found: Mapping[str, TensorLike], owner: str) -> None:
    missing = [name for name in expected if name not in found]
    unexpected = sorted(name for name in found if name not in expected)
    if missing or unexpected:
        raise InvalidArgumentError(
            f"{owner}: its config calls for {len(expected)} tensors; missing {len(missing)} {missing[:5]}, "
            f"unexpected {len(unexpected)} {[name[:200] for name in unexpected[:5]]}",
            field="tensors",
        )
