"""How planes of packed tensors lie in a safetensors file, and the check that they do.

Tensors lie in model order (embedding, layer 0, 1, …, norm, lm_head), so that a reader can use the first layers while
the rest still travels; a tensor's planes lie together, wider elements first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod

from deltaserve.delta.classes import LM_HEAD, classify
from deltaserve.delta.codecs import PlaneSpec, get_codec
from deltaserve.delta.headers import DTYPE_BYTES, TensorHeader
from deltaserve.delta.manifest import PLANE_SEPARATOR, STREAM_SUFFIX, TensorEntry
from deltaserve.errors import FormatError, InvalidArgumentError

WHOLE_CODECS = ("dense", "same")
"""Codecs of tensors that are no weight matrices: norms, biases."""

_NUMBER = re.compile(r"(\d+)")


def plane_key(tensor: str, plane: str) -> str:
    """Returns the name under which a plane is stored."""
    return f"{tensor}{PLANE_SEPARATOR}{plane}"


def stored_as(entry: TensorEntry, plane: str, spec: PlaneSpec) -> tuple[str, str, tuple[int, ...]]:
    """Returns name, dtype and shape with which a plane lies in the file: its own, or those of its lossless stream.

    Raises:
        FormatError: the entry says that the stream holds another number of bytes than the plane has.
    """
    stream = entry.lossless.get(plane)
    if stream is None:
        return plane_key(entry.name, plane), spec.dtype, tuple(spec.shape)
    if stream.raw_bytes != plane_bytes(spec):
        raise FormatError(
            f"tensor {entry.name!r} lists a stream of {stream.raw_bytes} bytes for its plane {plane!r}; "
            f"codec {entry.codec} makes {plane_bytes(spec)}"
        )
    return plane_key(entry.name, plane) + STREAM_SUFFIX, "U8", (stream.stored_bytes,)


def plane_bytes(spec: PlaneSpec) -> int:
    """Returns the bytes of a plane in memory."""
    return prod(spec.shape) * DTYPE_BYTES[spec.dtype]


def model_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Returns the key that sorts tensor names into the order in which a model uses them."""
    place = 0 if "embed_tokens" in name else 1 if ".layers." in name else 3 if name == LM_HEAD else 2
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBER.split(name) if part]
    return place, parts


def plane_order(plane: TensorHeader) -> tuple[int, str]:
    """Returns the key that sorts a tensor's planes: wider elements first, so that they stay aligned."""
    return -DTYPE_BYTES[plane.dtype], plane.name


def group_planes(
    entries: Iterable[TensorEntry], headers: Mapping[str, TensorHeader], owner: str
) -> dict[str, dict[str, TensorHeader]]:
    """Returns the planes of every tensor, by tensor and plane, when a file holds exactly what its entries call for.

    Raises:
        FormatError: an unknown codec, bad parameters, a class that does not fit the name, a plane that is missing, left
            over, or of the wrong dtype or shape, or sizes that do not add up.
    """
    left = dict(headers)
    found = {entry.name: _take_planes(entry, left, owner) for entry in entries}
    if left:
        raise FormatError(
            f"{owner} holds {len(left)} planes that no tensor calls for: {[n[:200] for n in list(left)[:5]]}"
        )
    return found


def check_entry(entry: TensorEntry) -> None:
    """Raises FormatError when an entry makes no sense in itself."""
    kind = classify(entry.name, entry.shape)
    if entry.kind != kind:
        raise FormatError(f"tensor {entry.name!r} is listed as {entry.kind!r}; its name and shape make it {kind!r}")
    try:
        codec = get_codec(entry.codec)
        codec.check_params(entry.params, entry.shape)
    except InvalidArgumentError as error:
        raise FormatError(f"tensor {entry.name!r}: {error.message}") from error
    if kind not in ("linear", "embedding", "lm_head") and entry.codec not in WHOLE_CODECS:
        raise FormatError(f"tensor {entry.name!r} of class {kind} has codec {entry.codec!r}; expected {WHOLE_CODECS}")


def _take_planes(entry: TensorEntry, left: dict[str, TensorHeader], owner: str) -> dict[str, TensorHeader]:
    check_entry(entry)
    planes: dict[str, TensorHeader] = {}
    specs = get_codec(entry.codec).plane_specs(entry.shape, entry.dtype, entry.params)
    if strange := set(entry.lossless) - set(specs):
        raise FormatError(f"tensor {entry.name!r} ({entry.codec}) lists streams of planes that it has not: {strange}")
    for plane, spec in specs.items():
        key, dtype, shape = stored_as(entry, plane, spec)
        header = left.pop(key, None)
        if header is None:
            raise FormatError(f"{owner} lacks the plane {plane!r} of tensor {entry.name!r} ({entry.codec})")
        if (header.dtype, header.shape) != (dtype, shape):
            raise FormatError(
                f"{owner}: plane {plane!r} of tensor {entry.name!r} is {header.dtype} {list(header.shape)}; "
                f"codec {entry.codec} stores {dtype} {list(shape)}"
            )
        planes[plane] = header
    expected = sum(plane_bytes(spec) for spec in specs.values())
    if expected != entry.bytes:
        raise FormatError(f"tensor {entry.name!r} is listed with {entry.bytes} bytes; its planes have {expected}")
    return planes
