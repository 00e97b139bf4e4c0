"""Parts of packed tensors that are packed tensors themselves: what one rank of a tensor-parallel engine holds.

Rows are what every codec codes one by one (or lists by number), so any range of them can be taken. Columns are taken
where they begin and end with a byte of the codes and with a group of the scales.
"""

from __future__ import annotations

import math

import msgspec
import torch

from deltaserve.delta.codecs import Planes, PlaneSpec, get_codec, take_rows
from deltaserve.delta.manifest import TensorEntry
from deltaserve.delta.packed import PackedTensor

_UNITS = 3 * 5 * 128  # columns: whole bytes of every packing, trits' five to a byte and vectors' 12 or 24 included


def slice_rows(packed: PackedTensor, begin: int, end: int) -> PackedTensor | None:
    """Returns rows begin … end − 1 of a matrix, a view where the planes allow; None where nothing of a list is left."""
    entry = packed.entry
    specs = packed.codec.plane_specs(packed.shape, entry.dtype, entry.params)
    planes = take_rows(packed.planes, specs, torch.arange(begin, end, device=packed.device))
    listed = {name: len(planes[name]) for name, spec in specs.items() if spec.rows == "list"}
    if not all(listed.values()):
        return None
    params = {key: listed.get(key, value) for key, value in entry.params.items()}
    return _sliced(entry, [end - begin, *entry.shape[1:]], params, planes)


def slice_columns(packed: PackedTensor, begin: int, end: int) -> PackedTensor | None:
    """Returns columns begin … end − 1 of a matrix [N, K], or None where they cannot be had without decoding."""
    cuts = column_cuts(packed.entry, begin, end)
    if cuts is None:
        return None
    planes = {
        name: plane.narrow(cuts[name][0], cuts[name][1], cuts[name][2] - cuts[name][1]) if name in cuts else plane
        for name, plane in packed.planes.items()
    }
    planes = {name: plane.contiguous() for name, plane in planes.items()}
    return _sliced(packed.entry, [packed.shape[0], end - begin], dict(packed.entry.params), planes)


def column_cuts(entry: TensorEntry, begin: int, end: int) -> dict[str, tuple[int, int, int]] | None:
    """Returns how columns begin … end − 1 of a matrix are cut out: by plane, dimension, begin and end in it.

    Planes that are not named are needed whole. None: a cut would go through a byte or a group.
    """
    columns = entry.shape[1]
    units = math.lcm(_UNITS, *(value for key, value in entry.params.items() if key == "group_size" and value))
    whole, part = _specs(entry, columns), _specs(entry, end - begin)
    before, upto, many = (
        _specs(entry, begin or columns),
        _specs(entry, end),
        _specs(entry, units * -(-columns // units)),
    )
    cuts: dict[str, tuple[int, int, int]] = {}
    for name, spec in whole.items():
        changed = [i for i, (a, b) in enumerate(zip(spec.shape, part[name].shape, strict=True)) if a != b]
        if not changed:
            continue
        (axis,) = changed
        first = before[name].shape[axis] if begin else 0
        last = upto[name].shape[axis]
        total, size = units * -(-columns // units), many[name].shape[axis]
        if first * total != begin * size or (end != columns and last * total != end * size):
            return None
        if last - first != part[name].shape[axis]:
            return None
        cuts[name] = (axis, first, last)
    return cuts


def _specs(entry: TensorEntry, columns: int) -> dict[str, PlaneSpec]:
    return get_codec(entry.codec).plane_specs((entry.shape[0], columns), entry.dtype, entry.params)


def _sliced(entry: TensorEntry, shape: list[int], params: dict[str, int], planes: Planes) -> PackedTensor:
    size = sum(plane.nbytes for plane in planes.values())
    return PackedTensor(msgspec.structs.replace(entry, shape=shape, params=params, bytes=size), planes)
