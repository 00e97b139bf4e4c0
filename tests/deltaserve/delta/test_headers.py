"""Headers of honest and hostile safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltaserve.delta.headers import INDEX_FILE, read_folder_headers, read_header, refuse_pickle
from deltaserve.errors import FormatError, InvalidArgumentError


def write(path: Path, header: Any, payload: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + payload)
    return path


def entry(begin: int, end: int, shape: list[Any], dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.tensor(1.0), "c": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "f.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "f.safetensors")
    assert {name: (h.dtype, h.shape, h.bytes) for name, h in found.items()} == {
        "a": ("BF16", (3, 5), 30),
        "b": ("F32", (), 4),
        "c": ("F32", (0, 4), 0),
    }


HOSTILE: dict[str, tuple[Any, bytes]] = {
    "not json": (b"{", b""),
    "not utf-8": (b'{"\xff": 1}', b""),
    "no object": ([1], b""),
    "nan": (b'{"a": NaN}', b""),
    "deep": (b"[" * 100_000, b""),
    "huge number": (b'{"a": {"dtype": "U8", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 1]}}', b"x"),
    "entry is no object": ({"a": 1}, b""),
    "missing key": ({"a": {"dtype": "U8", "shape": [1]}}, b"x"),
    "extra key": ({"a": {**entry(0, 1, [1]), "more": 1}}, b"x"),
    "unknown dtype": ({"a": entry(0, 1, [1], "Q8")}, b"x"),
    "dtype is a list": ({"a": entry(0, 1, [1], ["U8"])}, b"x"),
    "negative dimension": ({"a": entry(0, 1, [-1])}, b"x"),
    "fractional dimension": ({"a": entry(0, 1, [1.0])}, b"x"),
    "boolean dimension": ({"a": entry(0, 1, [True])}, b"x"),
    "nine dimensions": ({"a": entry(0, 1, [1] * 9)}, b"x"),
    "overflowing shape": ({"a": entry(0, 0, [1 << 32, 1 << 32])}, b""),
    "size mismatch": ({"a": entry(0, 2, [3])}, b"xx"),
    "reversed offsets": ({"a": entry(1, 0, [0])}, b"x"),
    "three offsets": ({"a": {**entry(0, 1, [1]), "data_offsets": [0, 1, 1]}}, b"x"),
    "outside the file": ({"a": entry(0, 9, [9])}, b"x"),
    "overlap": ({"a": entry(0, 2, [2]), "b": entry(1, 3, [2])}, b"xxx"),
    "gap": ({"a": entry(0, 1, [1]), "b": entry(2, 3, [1])}, b"xxx"),
    "gap at the start": ({"a": entry(1, 2, [1])}, b"xx"),
    "left over": ({"a": entry(0, 1, [1])}, b"xx"),
    "repeated key": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}', b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
}


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.replace(" ", "-"))
def test_refuses_hostile_headers(tmp_path: Path, case: str) -> None:
    header, payload = HOSTILE[case]
    with pytest.raises(FormatError):
        read_header(write(tmp_path / "f.safetensors", header, payload))


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "truncated"), (b"1234567", "truncated"), (b"\xff" * 8, "truncated")]
)
def test_refuses_files_too_short(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(FormatError, match=word):
        read_header(tmp_path / "f")


def test_refuses_a_header_beyond_the_limit_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.write((101 << 20).to_bytes(8, "little"))
        file.truncate(200 << 20)
    with pytest.raises(FormatError, match="at most"):
        read_header(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    good = write(tmp_path / "g", {"a": entry(0, 6, [2, 3]), "b": entry(6, 14, [2], "F32")}, bytes(14)).read_bytes()
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    path = tmp_path / "f"
    path.write_bytes(bytes(damaged[:cut]))
    try:
        found = read_header(path)
    except FormatError:
        return
    assert all(8 <= tensor.begin <= tensor.end <= cut for tensor in found.values())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_refused_or_empty(tmp_path: Path, header: Any) -> None:
    try:
        found = read_header(write(tmp_path / "f", header))
    except FormatError:
        return
    assert all(tensor.bytes == 0 for tensor in found.values())


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_reads_shards(shards: Path) -> None:
    found = read_folder_headers(shards)
    assert {name: header.file.name[:11] for name, header in found.items()} == {"a": "model-00001", "b": "model-00002"}


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "model-00001-of-00002.safetensors"}, ""),
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}, "names 1 tensors"),
        ({"a": "model-00002-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}, "names 1 tensors"),
        ({"a": "missing.safetensors"}, "not there"),
        ({"a": "../model.safetensors"}, "plain file name"),
        ({"a": "/etc/passwd"}, "plain file name"),
        ({"a": 1}, "no weight_map"),
        (None, "no weight_map"),
    ],
)
def test_refuses_a_wrong_index(shards: Path, weight_map: Any, word: str) -> None:
    write_index(shards, weight_map)
    if word == "":
        assert set(read_folder_headers(shards)) == {"a"}
        return
    with pytest.raises(InvalidArgumentError, match=word):
        read_folder_headers(shards)


def test_refuses_a_shard_with_more_than_the_index_says(shards: Path) -> None:
    save_file({"a": torch.zeros(2), "c": torch.zeros(1)}, shards / "model-00001-of-00002.safetensors")
    with pytest.raises(FormatError, match="'c'"):
        read_folder_headers(shards)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "A.PTH", "x.ckpt", "w.pkl", "w.pickle"])
def test_refuses_pickles_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="safetensors"):
        refuse_pickle(["config.json", name])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match="Convert"):
        read_folder_headers(tmp_path)


def test_names_what_it_expected(tmp_path: Path) -> None:
    refuse_pickle(["model.safetensors", "tokenizer.json"])
    with pytest.raises(InvalidArgumentError, match=r"neither model\.safetensors"):
        read_folder_headers(tmp_path)
    with pytest.raises(InvalidArgumentError, match="neither"):
        read_folder_headers(tmp_path / "absent")
