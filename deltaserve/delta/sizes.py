"""Sizes of a delta by tensor class, and the ratios that follow from them. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from deltaserve.delta.headers import DTYPE_BYTES
from deltaserve.delta.manifest import DELTA_FILE, ClassSize, FileEntry, Manifest, Sizes, TensorClass, TensorEntry
from deltaserve.errors import FormatError


def measure(tensors: Sequence[TensorEntry], files: Iterable[FileEntry]) -> Sizes:
    """Returns the sizes of tensors and the files stored with them."""
    by_class: dict[TensorClass, list[TensorEntry]] = {}
    for entry in tensors:
        by_class.setdefault(entry.kind, []).append(entry)
    return Sizes(
        parameters=sum(_parameters(entry) for entry in tensors),
        checkpoint_bytes=sum(_checkpoint_bytes(entry) for entry in tensors),
        delta_bytes=sum(file.size for file in files if file.source == "delta"),
        by_class={kind: _class_size(entries) for kind, entries in sorted(by_class.items())},
    )


def check_sizes(manifest: Manifest) -> None:
    """Raises FormatError when a manifest's sizes are not what its tensors and files add up to."""
    if manifest.file(DELTA_FILE).source != "delta":
        raise FormatError(f"manifest: {DELTA_FILE} has source 'base'; expected 'delta'")
    expected = measure(manifest.tensors, manifest.files)
    if manifest.sizes != expected:
        raise FormatError(f"manifest: sizes are {manifest.sizes}; its tensors and files add up to {expected}")


def ratio(sizes: Sizes, kinds: Sequence[TensorClass]) -> float:
    """Returns checkpoint bytes over stored delta bytes of some classes; 1.0 when there are none of them."""
    chosen = [sizes.by_class[kind] for kind in kinds if kind in sizes.by_class]
    packed = sum(size.delta_bytes for size in chosen)
    return sum(size.checkpoint_bytes for size in chosen) / packed if packed else 1.0


def bits_per_parameter(size: ClassSize) -> float:
    """Returns the stored bits of a parameter, scales included."""
    return 8 * size.delta_bytes / size.parameters


def _class_size(entries: Sequence[TensorEntry]) -> ClassSize:
    return ClassSize(
        tensors=len(entries),
        parameters=sum(_parameters(entry) for entry in entries),
        checkpoint_bytes=sum(_checkpoint_bytes(entry) for entry in entries),
        delta_bytes=sum(entry.stored_bytes for entry in entries),
    )


def _parameters(entry: TensorEntry) -> int:
    return prod(entry.shape)


def _checkpoint_bytes(entry: TensorEntry) -> int:
    return prod(entry.shape) * DTYPE_BYTES[entry.dtype]
