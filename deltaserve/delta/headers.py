"""Strict reader of safetensors headers: which tensors a file holds, and where. Free of torch.

Every malformation is a FormatError: what passes here can be mapped into memory without further bounds checks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from deltaserve.errors import FormatError, InvalidArgumentError
from deltaserve.json_bounds import check_values
from deltaserve.names import check_file_name

MAX_HEADER_BYTES = 4 << 20  # MAX_VALUES allows some 28,000 tensors; parsing takes up to fifteen times as much memory
MAX_INDEX_BYTES = 4 << 20
MAX_DIMENSIONS = 8
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one element, by safetensors dtype."""

_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor in a file.

    Attributes:
        name: as in the file.
        dtype: safetensors dtype, a key of DTYPE_BYTES.
        shape: dimensions, outermost first; () for a scalar.
        begin, end: its bytes are begin … end − 1 of the file, counted from the file's start.
        file: the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    file: Path

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Reads the header of a safetensors file, tensors in the order of their bytes.

    Raises:
        FormatError: truncated, not JSON, unknown dtype, offsets that overlap, leave gaps or leave the file, sizes that
            do not match the shape, a repeated name, or a header of more than 4 MiB or MAX_VALUES values.
    """
    return read_header_and_metadata(path)[0]


def read_header_and_metadata(path: Path) -> tuple[dict[str, TensorHeader], dict[str, str]]:
    """Reads the header of a safetensors file and its free-form `__metadata__`. Raises FormatError as `read_header`."""
    data, size = _header_bytes(path)
    start = _LENGTH_BYTES + len(data)
    fields = _parse_json(data, path.name)
    if not isinstance(fields, dict):
        raise FormatError(f"{path.name}: safetensors header is a JSON {type(fields).__name__}; expected an object")
    metadata = _metadata(fields.pop(_METADATA, {}), path)
    tensors = [_tensor(name, value, start, path) for name, value in fields.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_layout(tensors, start, size, path)
    return {tensor.name: tensor for tensor in tensors}, metadata


def read_folder_headers(folder: Path) -> dict[str, TensorHeader]:
    """Reads the headers of a checkpoint: `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Raises:
        InvalidArgumentError: no safetensors there; names the pickled weights when it finds those instead.
        FormatError: a malformed file, or an index that disagrees with its shards.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    refuse_pickle(names)
    raise InvalidArgumentError(
        f"{str(folder)!r} holds neither {SINGLE_FILE} nor {INDEX_FILE}; expected a checkpoint in safetensors, "
        f"found {names[:20]}"
    )


def refuse_pickle(names: Iterable[str]) -> None:
    """Raises InvalidArgumentError if a file name is one of pickled (or otherwise foreign) weights."""
    for name in names:
        if name.lower().endswith(_PICKLE_SUFFIXES):
            raise InvalidArgumentError(
                f"{name!r} is refused by its name: such files may be pickles, which run code when they are read. "
                "Convert the weights to safetensors (transformers: model.save_pretrained(folder)) and leave it out",
                field="files",
            )


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """Returns the header's bytes and the size of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise FormatError(
                f"{path.name} has {size} bytes and says its header takes {length}; "
                "it is truncated or no safetensors file"
            )
        if length > MAX_HEADER_BYTES:
            raise FormatError(f"{path.name}: header of {length} bytes; expected at most {MAX_HEADER_BYTES}")
        data = file.read(length)
    if len(data) != length:
        raise FormatError(f"{path.name}: header ends after {len(data)} of {length} bytes")
    return data, size


def _parse_json(data: bytes, owner: str) -> Any:
    try:
        check_values(data)
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise FormatError(f"{owner}: not the JSON that was expected: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"key {name[:200]!r} appears twice")
        fields[name] = value
    return fields


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(f"{path.name}: {_METADATA} is not an object of strings")
    return value


def _tensor(name: str, value: Any, start: int, path: Path) -> TensorHeader:
    owner = f"{path.name}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{owner} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise FormatError(f"{owner} has dtype {str(dtype)[:40]!r}; expected one of {sorted(DTYPE_BYTES)}")
    if not _is_counts(shape, MAX_DIMENSIONS) or not _is_counts(offsets, 2) or len(offsets) != 2:
        raise FormatError(f"{owner} has a shape or data_offsets that are not short lists of whole numbers from 0")
    begin, end = offsets
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise FormatError(f"{owner} of {dtype} {shape} takes {end - begin} bytes; expected {expected}")
    return TensorHeader(name, dtype, tuple(shape), start + begin, start + end, path)


def _is_counts(value: Any, most: int) -> bool:
    if not isinstance(value, list) or len(value) > most:
        return False
    return all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_layout(tensors: list[TensorHeader], start: int, size: int, path: Path) -> None:
    position = start
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            raise FormatError(
                f"{path.name}: tensor {tensor.name!r} begins at byte {tensor.begin}; expected {position}: it {what}"
            )
        position = tensor.end
    if position != size:
        raise FormatError(f"{path.name} has {size} bytes; its header accounts for {position}")


def _read_shards(folder: Path) -> dict[str, TensorHeader]:
    path = folder / INDEX_FILE
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise FormatError(f"{INDEX_FILE} has {path.stat().st_size} bytes; expected at most {MAX_INDEX_BYTES}")
    index = _parse_json(path.read_bytes(), INDEX_FILE)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FormatError(f"{INDEX_FILE} has no weight_map from tensor names to file names")
    found: dict[str, TensorHeader] = {}
    for file in sorted(set(weight_map.values())):
        check_file_name(file, "weight_map")
        if not (folder / file).is_file():
            raise FormatError(f"{INDEX_FILE} names the shard {file!r}, which is not there")
        _add_shard(found, read_header(folder / file), weight_map)
    missing = sorted(set(weight_map) - set(found))
    if missing:
        raise FormatError(f"{INDEX_FILE} names {len(missing)} tensors that its shards do not hold: {missing[:5]}")
    return found


def _add_shard(found: dict[str, TensorHeader], shard: dict[str, TensorHeader], weight_map: dict[str, str]) -> None:
    for name, tensor in shard.items():
        if weight_map.get(name) != tensor.file.name:
            raise FormatError(
                f"shard {tensor.file.name!r} holds tensor {name!r}; {INDEX_FILE} says {weight_map.get(name)!r}"
            )
        found[name] = tensor
