"""Codes one tensor of a fine-tune into its packed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.classes import classify
from deltaserve.delta.codecs import EncodeOptions, Params, get_codec
from deltaserve.delta.codecs.lowrank import DTYPE, DTYPES, LEFT, RANK, RIGHT
from deltaserve.delta.codecs.sparse_exact import CHANGED, changes, unchanged
from deltaserve.delta.dtypes import SAFETENSORS_DTYPES
from deltaserve.delta.layout import plane_bytes
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
        codec: one of the form `delta`.
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
    return _packed(name, target.shape, dtype, codec, base, dict(params or {}), planes)


def code_dense(name: str, tensor: torch.Tensor) -> PackedTensor:
    """Keeps one tensor of the fine-tune whole, in its own dtype. Raises InvalidArgumentError for NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidArgumentError(f"tensor {name!r} holds NaN or infinity; expected finite values", tensor=name)
    planes = get_codec("dense").encode(tensor, None, {}, _DEFAULTS)
    return _packed(name, tensor.shape, tensor.dtype, "dense", None, {}, planes)


def code_same(name: str, shape: Sequence[int], dtype: torch.dtype, base: str) -> PackedTensor:
    """Codes a tensor as the base's."""
    return _packed(name, shape, dtype, "same", base, {}, {})


def code_exact(name: str, tuned: torch.Tensor, base: torch.Tensor, base_name: str) -> PackedTensor:
    """Codes one tensor of the fine-tune bit for bit: `same`, `sparse_exact` or `dense`, whichever takes fewest bytes.

    Args:
        name: of the fine-tune's tensor.
        tuned: W_f in its own dtype.
        base: W_b in any dtype, of the same shape.
        base_name: of the base's tensor.

    Raises:
        InvalidArgumentError: NaN or infinity in W_f.
    """
    if not bool(torch.isfinite(tuned).all()):
        raise InvalidArgumentError(f"tensor {name!r} holds NaN or infinity; expected finite values", tensor=name)
    codec, params = exact_codec(tuned, base, SAFETENSORS_DTYPES[tuned.dtype])
    if codec == "same":
        return code_same(name, tuned.shape, tuned.dtype, base_name)
    if codec == "dense":
        return code_dense(name, tuned)
    planes = get_codec(codec).encode(changes(tuned, base.to(tuned.device)), None, params, _DEFAULTS)
    return _packed(name, tuned.shape, tuned.dtype, codec, base_name, params, planes)


def exact_codec(tuned: torch.Tensor, base: torch.Tensor, dtype: str) -> tuple[str, dict[str, int]]:
    """Returns codec and parameters that store a tensor bit for bit in fewest bytes, without coding it.

    Args:
        tuned: W_f in its own dtype or one that holds all its values.
        base: W_b likewise, of the same shape.
        dtype: safetensors dtype that W_f is stored in.
    """
    changed = tuned.numel() - int(unchanged(tuned, base.to(tuned.device)).sum())
    if changed == 0:
        return "same", {}
    params = {CHANGED: changed}
    if tuned.dim() == 2 and _bytes("sparse_exact", tuned.shape, dtype, params) < _bytes(
        "dense", tuned.shape, dtype, {}
    ):
        return "sparse_exact", params
    return "dense", {}


def _bytes(codec: str, shape: Sequence[int], dtype: str, params: Params) -> int:
    specs = get_codec(codec).plane_specs(shape, dtype, params)
    return sum(map(plane_bytes, specs.values()))


def code_factors(
    name: str, left: torch.Tensor, right: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, base: str
) -> PackedTensor:
    """Keeps the factors of a low-rank delta as they are, e.g. of a LoRA adapter.

    Args:
        name: of the fine-tune's tensor.
        left: [N, r], float16, bfloat16 or float32.
        right: [r, K] of the same dtype.
        shape: (N, K).
        dtype: of the fine-tune's tensor, told to the manifest.
        base: name of the base tensor.

    Raises:
        InvalidArgumentError: NaN or infinity.
        FormatError: a rank above what the shape allows.
    """
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise InvalidArgumentError(f"the factors of {name!r} hold NaN or infinity; expected finite values", tensor=name)
    params = {RANK: right.shape[0], DTYPE: DTYPES.index(SAFETENSORS_DTYPES[right.dtype])}
    get_codec("lowrank").check_params(params, shape)
    return _packed(name, shape, dtype, "lowrank", base, params, {LEFT: left, RIGHT: right})


def _packed(
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    codec: str,
    base: str | None,
    params: dict[str, int],
    planes: dict[str, torch.Tensor],
) -> PackedTensor:
    planes = {plane: values.cpu().contiguous() for plane, values in planes.items()}
    entry = TensorEntry(
        name=name,
        kind=classify(name, shape),
        shape=list(shape),
        dtype=SAFETENSORS_DTYPES[dtype],  # type: ignore[arg-type]
        codec=codec,
        base=base,
        params=params,
        bytes=sum(plane.nbytes for plane in planes.values()),
        sha256=planes_sha256(planes),
    )
    return PackedTensor(entry, planes)
