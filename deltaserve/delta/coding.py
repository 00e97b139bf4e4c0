"""Codes one tensor of a fine-tune into its packed form."""

from __future__ import annotations

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.classes import classify
from deltaserve.delta.codecs import EncodeOptions, Params, get_codec
from deltaserve.delta.dtypes import SAFETENSORS_DTYPES
from deltaserve.delta.manifest import TensorEntry
from deltaserve.delta.packed import PackedTensor, planes_sha256
from deltaserve.errors import InvalidArgumentError

_DEFAULTS = EncodeOptions()


def code_delta(
    name: str,
    target: torch.Tensor,
    dtype: torch.dtype,
    codec: str,
    *,
    base: str,
    curvature: Curvature | None = None,
    params: Params | None = None,
    options: EncodeOptions = _DEFAULTS,
) -> PackedTensor:
    """Codes the delta of one matrix.

    Args:
        name: of the fine-tune's tensor.
        target: Δ or the asymmetric Δ*, float32 [N, K], finite.
        dtype: of the fine-tune's tensor, told to the manifest.
        codec: any but `dense`.
        base: name of the base tensor that Δ is counted from.
        curvature: Gram matrix [K, K] of the inputs, when there is one.
        params: of the codec.
        options: see EncodeOptions.

    Returns:
        The packed tensor, planes on the CPU.

    Raises:
        InvalidArgumentError: no such codec, or NaN or infinity in the target.
        FormatError: parameters or a shape that the codec does not take.
    """
    if not bool(torch.isfinite(target).all()):
        raise InvalidArgumentError(f"the delta of {name!r} holds NaN or infinity; expected finite values", tensor=name)
    chosen = get_codec(codec)
    planes = chosen.encode(target.float(), curvature, params or {}, options)
    return _packed(name, target, dtype, codec, base, dict(params or {}), planes)


def code_dense(name: str, tensor: torch.Tensor) -> PackedTensor:
    """Keeps one tensor of the fine-tune whole, in its own dtype. Raises InvalidArgumentError for NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidArgumentError(f"tensor {name!r} holds NaN or infinity; expected finite values", tensor=name)
    planes = get_codec("dense").encode(tensor, None, {}, _DEFAULTS)
    return _packed(name, tensor, tensor.dtype, "dense", None, {}, planes)


def _packed(
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    codec: str,
    base: str | None,
    params: dict[str, int],
    planes: dict[str, torch.Tensor],
) -> PackedTensor:
    planes = {plane: values.cpu().contiguous() for plane, values in planes.items()}
    entry = TensorEntry(
        name=name,
        kind=classify(name, tensor.shape),
        shape=list(tensor.shape),
        dtype=SAFETENSORS_DTYPES[dtype],  # type: ignore[arg-type]
        codec=codec,
        base=base,
        params=params,
        bytes=sum(plane.nbytes for plane in planes.values()),
        sha256=planes_sha256(planes),
    )
    return PackedTensor(entry, planes)
