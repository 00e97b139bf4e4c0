"""Reading deltas: what was written comes back, and nothing malformed passes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.headers import read_header
from deltaserve.delta.lossless import decode
from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE
from deltaserve.delta.packed import planes_sha256
from deltaserve.delta.reader import DeltaReader, check_delta_against_base
from deltaserve.errors import BaseMismatchError, DataLossError, DeltaServeError, FormatError, InvalidArgumentError

from .conftest import WriteModel, random_weights, tiny_config
from .packing_up import pack_all, write_delta

Pair = tuple[Checkpoint, Checkpoint]
Fields = dict[str, Any]


@pytest.fixture
def folder(pair: Pair, tmp_path: Path) -> Path:
    return write_delta(*pair, tmp_path, "int2").folder


def rewrite(folder: Path, change: Callable[[Fields], None]) -> None:
    """Changes the manifest; keeps the payload's entry and the sizes right."""
    path = folder / MANIFEST_FILE
    fields = json.loads(path.read_bytes())
    change(fields)
    path.write_text(json.dumps(fields))


def repack(folder: Path, change: Callable[[Fields, bytearray], None]) -> None:
    """Changes header and payload of the delta, and makes the manifest agree about the file's size and sha256."""
    path = folder / DELTA_FILE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, payload = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    change(header, payload)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    agree(folder)


def agree(folder: Path) -> None:
    data = (folder / DELTA_FILE).read_bytes()

    def change(fields: Fields) -> None:
        (entry,) = (file for file in fields["files"] if file["path"] == DELTA_FILE)
        fields["sizes"]["delta_bytes"] += len(data) - entry["size"]
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    rewrite(folder, change)


def tensor(fields: Fields, name: str) -> Fields:
    found: Fields = next(entry for entry in fields["tensors"] if entry["name"] == name)
    return found


LINEAR = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize("codec", ["sign1", "int2", "int3", "int4", "dense"])
@pytest.mark.parametrize("verify", [True, False])
def test_what_was_written_comes_back(pair: Pair, tmp_path: Path, codec: str, verify: bool) -> None:
    packed = {tensor.entry.name: tensor for tensor in pack_all(*pair, codec)}
    folder = write_delta(*pair, tmp_path, codec).folder
    reader = DeltaReader.open(folder, verify=verify)
    assert set(reader.names()) == set(packed)
    for name, original in packed.items():
        found = reader.tensor(name)
        assert found.entry == original.entry
        assert found.nbytes == found.entry.bytes == original.nbytes
        assert torch.equal(found.decode(), original.decode())
        rows = torch.tensor([0, original.shape[0] - 1])
        assert torch.equal(found.rows(rows), original.decode()[rows])
    check_delta_against_base(reader.manifest, pair[0].config, pair[0].tensors, fingerprint(pair[0]))


def test_unknown_tensor(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no tensor 'x'"):
        DeltaReader.open(folder).tensor("x")


@pytest.mark.parametrize("file", [MANIFEST_FILE, DELTA_FILE])
def test_missing_files_are_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(InvalidArgumentError, match=file):
        DeltaReader.open(folder)


@pytest.mark.parametrize("verify", [True, False])
def test_truncation_is_data_loss(folder: Path, verify: bool) -> None:
    data = (folder / DELTA_FILE).read_bytes()
    (folder / DELTA_FILE).write_bytes(data[:-1])
    with pytest.raises(DataLossError, match=f"has {len(data) - 1} bytes"):
        DeltaReader.open(folder, verify=verify)


def test_a_flipped_bit_is_data_loss_at_the_latest_when_read(folder: Path) -> None:
    header = read_header(folder / DELTA_FILE)[f"{LINEAR}::codes"]
    data = bytearray((folder / DELTA_FILE).read_bytes())
    data[header.begin] ^= 1
    (folder / DELTA_FILE).write_bytes(data)
    with pytest.raises(DataLossError, match="sha256"):
        DeltaReader.open(folder)
    reader = DeltaReader.open(folder, verify=False)
    reader.tensor(NORM)
    with pytest.raises(DataLossError, match="sha256"):
        reader.tensor(LINEAR)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_any_file_passes(folder: Path, data: st.DataObject) -> None:
    path = folder / data.draw(st.sampled_from([MANIFEST_FILE, DELTA_FILE]))
    good = path.read_bytes()
    bad = bytearray(good)
    place = data.draw(st.integers(0, len(good) - 1))
    bad[place] = (bad[place] + data.draw(st.integers(1, 255))) % 256
    before = DeltaReader.open(folder)
    path.write_bytes(bad)
    try:
        after = DeltaReader.open(folder)
    except DeltaServeError:
        return
    finally:
        path.write_bytes(good)
    # what still opens says something else about itself, or the same in other words; never about its tensors' bytes
    assert path.name == MANIFEST_FILE
    assert [e.sha256 for e in after.manifest.tensors] == [e.sha256 for e in before.manifest.tensors]


def test_extra_plane_is_refused(folder: Path) -> None:
    def change(header: Fields, payload: bytearray) -> None:
        header["x::codes"] = {"dtype": "U8", "shape": [1], "data_offsets": [len(payload), len(payload) + 1]}
        payload.append(0)

    repack(folder, change)
    with pytest.raises(FormatError, match="no tensor calls for"):
        DeltaReader.open(folder)


def test_missing_plane_is_refused(folder: Path) -> None:
    def change(header: Fields, payload: bytearray) -> None:
        header["y::scale"] = header.pop(f"{LINEAR}::scale")

    repack(folder, change)
    with pytest.raises(FormatError, match=r"lacks the plane 'scale'"):
        DeltaReader.open(folder)


@pytest.mark.parametrize(("key", "value"), [("dtype", "BF16"), ("shape", [1, 2])])
def test_plane_of_another_dtype_or_shape_is_refused(folder: Path, key: str, value: Any) -> None:
    def change(header: Fields, payload: bytearray) -> None:
        plane = header[f"{LINEAR}::scale"]
        count = plane["shape"][0] * plane["shape"][1]
        plane[key] = value if key == "dtype" else [count, 1]

    repack(folder, change)
    with pytest.raises(FormatError, match="stores F16"):
        DeltaReader.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_bad_scales_are_refused_even_with_right_hashes(folder: Path, value: float) -> None:
    header = read_header(folder / DELTA_FILE)[f"{LINEAR}::scale"]
    data = bytearray((folder / DELTA_FILE).read_bytes())
    data[header.begin : header.begin + 2] = torch.tensor([value]).half().numpy().tobytes()
    (folder / DELTA_FILE).write_bytes(data)
    agree(folder)
    planes = {
        name.partition("::")[2]: torch.frombuffer(data, dtype=torch.uint8, count=h.bytes, offset=h.begin)
        for name, h in read_header(folder / DELTA_FILE).items()
        if name.startswith(f"{LINEAR}::")
    }
    rewrite(folder, lambda fields: tensor(fields, LINEAR).update(sha256=planes_sha256(planes)))
    with pytest.raises(FormatError, match="scales"):
        DeltaReader.open(folder)


MANIFEST_CHANGES: dict[str, tuple[Callable[[Fields], None], str]] = {
    "unknown codec": (lambda f: tensor(f, LINEAR).update(codec="int9"), "no codec 'int9'"),
    "other codec": (lambda f: tensor(f, LINEAR).update(codec="int3"), "stores"),
    "unknown parameter": (lambda f: tensor(f, LINEAR).update(params={"x": 1}), "no parameters"),
    "other group": (lambda f: tensor(f, LINEAR).update(params={"group_size": 32}), "stores"),
    "odd group": (lambda f: tensor(f, LINEAR).update(params={"group_size": 17}), "multiple of 16"),
    "wrong class": (lambda f: tensor(f, LINEAR).update(kind="norm"), "make it 'linear'"),
    "wrong shape": (lambda f: tensor(f, LINEAR).update(shape=[36, 44]), "stores"),
    "huge shape": (lambda f: tensor(f, LINEAR).update(shape=[1 << 60, 1 << 60]), "stores"),
    "three dimensions": (lambda f: tensor(f, LINEAR).update(shape=[44, 36, 1], kind="other"), "takes matrices"),
    "coded norm": (lambda f: tensor(f, NORM).update(codec="int4", base=NORM), "takes matrices"),
    "wrong bytes": (lambda f: tensor(f, LINEAR).update(bytes=1), "listed with 1 bytes"),
    "wrong dtype": (lambda f: tensor(f, NORM).update(dtype="F16"), "stores F16"),
    "wrong sizes": (lambda f: f["sizes"].update(parameters=1), "sizes are"),
    "payload elsewhere": (lambda f: f["files"][0].update(source="base"), "source 'base'"),
    "path": (lambda f: f["files"][1].update(path="../x"), "plain file name"),
    "no tensors": (lambda f: f.update(tensors=[]), "no tensor calls for"),
}


@pytest.mark.parametrize("case", MANIFEST_CHANGES)
def test_manifests_that_do_not_fit_the_payload_are_refused(folder: Path, case: str) -> None:
    change, word = MANIFEST_CHANGES[case]
    rewrite(folder, change)
    with pytest.raises(InvalidArgumentError, match=word):
        DeltaReader.open(folder)


def test_another_base_is_refused(pair: Pair, folder: Path) -> None:
    manifest = DeltaReader.open(folder).manifest
    with pytest.raises(BaseMismatchError, match="was made for the base"):
        check_delta_against_base(manifest, pair[0].config, pair[0].tensors, "0" * 64)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (
            lambda f: tensor(f, LINEAR).update(base="model.layers.1.mlp.up_proj.weight"),
            BaseMismatchError,
            "coded against",
        ),
        (lambda f: f["config"].update(rope_theta=1.0), BaseMismatchError, "rope_parameters"),
        (lambda f: f["config"].update(num_hidden_layers=1), BaseMismatchError, "num_hidden_layers"),
        (lambda f: f["base"].update(architecture="Qwen2ForCausalLM"), FormatError, "base.architecture"),
        (lambda f: f["config"].update(vocab_size=51), InvalidArgumentError, r"calls for \[51, 36\]"),
    ],
)
def test_a_delta_that_does_not_fit_its_base_is_refused(
    pair: Pair, folder: Path, change: Callable[[Fields], None], error: type[DeltaServeError], word: str
) -> None:
    rewrite(folder, change)
    manifest = DeltaReader.open(folder).manifest
    with pytest.raises(error, match=word):
        check_delta_against_base(manifest, pair[0].config, pair[0].tensors, fingerprint(pair[0]))


def test_planes_after_an_odd_number_of_bytes_are_read(write_model: WriteModel, tmp_path: Path) -> None:
    config = tiny_config(vocab_size=33, hidden_size=40, intermediate_size=43)
    base = write_model("odd-base", config, random_weights(config, 0))
    tuned = write_model("odd-tuned", config, random_weights(config, 1))
    reader = write_delta(base, tuned, tmp_path, "int3", "int3")  # 33 rows of 15 bytes
    headers = read_header(reader.folder / DELTA_FILE).values()
    assert any(header.begin % 2 for header in headers if header.dtype == "F16")
    originals = {packed.entry.name: packed for packed in pack_all(base, tuned, "int3", "int3")}
    assert all(torch.equal(reader.tensor(name).decode(), originals[name].decode()) for name in reader.names())


EMBEDDING = "model.embed_tokens.weight"
STREAM = f"{EMBEDDING}::codes::rans"


@pytest.fixture
def streamed(write_model: WriteModel, tmp_path: Path, small_streams: None) -> Path:
    """A delta whose embedding's codes are a lossless stream, and so are other planes."""
    config = tiny_config(vocab_size=300, hidden_size=144, intermediate_size=160)
    base, change = random_weights(config, 0), random_weights(config, 1)
    tuned = {name: weight + 0.05 * change[name] for name, weight in base.items()}
    pair = write_model("base", config, base), write_model("tuned", config, tuned)
    folder = write_delta(*pair, tmp_path, "int4").folder
    assert STREAM in read_header(folder / DELTA_FILE)
    return folder


def put(folder: Path, place: int, data: bytes) -> None:
    """Overwrites bytes of the payload; the manifest agrees about the file."""
    path = folder / DELTA_FILE
    payload = bytearray(path.read_bytes())
    payload[place : place + len(data)] = data
    path.write_bytes(payload)
    agree(folder)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_stream_passes(streamed: Path, data: st.DataObject) -> None:
    """Even when the file's sha256 agrees: a damaged stream is malformed, or its tensor has another sha256."""
    header = read_header(streamed / DELTA_FILE)[STREAM]
    good = {path: path.read_bytes() for path in (streamed / DELTA_FILE, streamed / MANIFEST_FILE)}
    place = header.begin + data.draw(st.one_of(st.integers(0, 300), st.integers(0, header.bytes - 20)))
    damage = data.draw(st.binary(min_size=1, max_size=20))
    before = DeltaReader.open(streamed, verify=False).tensor(EMBEDDING).planes["codes"]
    put(streamed, place, damage)
    try:
        after = DeltaReader.open(streamed, verify=data.draw(st.booleans())).tensor(EMBEDDING).planes["codes"]
    except (FormatError, DataLossError):
        return
    finally:
        for path, contents in good.items():
            path.write_bytes(contents)
    assert torch.equal(before, after)


def stream_of(fields: Fields) -> Fields:
    found: Fields = tensor(fields, EMBEDDING)["lossless"]["codes"]
    return found


STREAM_CHANGES: dict[str, tuple[Callable[[Fields], None], str]] = {
    "raw bytes too many": (lambda f: stream_of(f).update(raw_bytes=1 << 60), r"stream of 1152921504606846976 bytes"),
    "raw bytes too few": (lambda f: stream_of(f).update(raw_bytes=1), "makes 21600"),
    "no raw bytes": (lambda f: stream_of(f).update(raw_bytes=0), "malformed"),
    "stored bytes": (lambda f: stream_of(f).update(stored_bytes=stream_of(f)["stored_bytes"] - 1), "stores U8"),
    "negative": (lambda f: stream_of(f).update(stored_bytes=-5), "malformed"),
    "unknown field": (lambda f: stream_of(f).update(codec="rans"), "malformed"),
    "not a stream": (lambda f: tensor(f, EMBEDDING)["lossless"].pop("codes"), "lacks the plane 'codes'"),
    "not a plane": (lambda f: tensor(f, EMBEDDING)["lossless"].update(x=stream_of(f)), "that it has not"),
    "huge tensor": (
        lambda f: (
            tensor(f, EMBEDDING).update(shape=[1 << 60, 144]),
            stream_of(f).update(raw_bytes=(1 << 60) * 72),
        ),
        "stream of|stores F16",
    ),
}


@pytest.mark.parametrize("case", STREAM_CHANGES)
def test_entries_that_do_not_fit_their_stream_are_refused(streamed: Path, case: str) -> None:
    change, word = STREAM_CHANGES[case]
    rewrite(streamed, lambda fields: change(fields) and None)
    with pytest.raises(FormatError, match=word):
        DeltaReader.open(streamed)


@pytest.mark.parametrize("verify", [True, False])
def test_a_stream_of_a_smaller_plane_is_refused(streamed: Path, verify: bool) -> None:
    """The stream is well-formed, and holds fewer bytes than the plane has."""
    header = read_header(streamed / DELTA_FILE)[STREAM]
    small = bytes([1, 1, 14, 0, 0, 0, 0, 0]) + bytes(header.bytes - 8)  # stored raw
    assert decode(np.frombuffer(small, dtype=np.uint8), header.bytes - 8).max() == 0
    put(streamed, header.begin, small)
    with pytest.raises(FormatError, match=r"plane 'codes' of tensor 'model.embed_tokens.weight': lossless stream"):
        DeltaReader.open(streamed, verify=verify).tensor(EMBEDDING)
