"""Writing deltas: parts, restarts, determinism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.headers import read_header
from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE, Manifest
from deltaserve.delta.packed import PackedTensor
from deltaserve.delta.reader import DeltaReader
from deltaserve.delta.writer import DeltaWriter
from deltaserve.errors import FormatError, InvalidArgumentError

from .conftest import WriteModel, random_weights, tiny_config
from .packing_up import identity, pack_all

Pair = tuple[Checkpoint, Checkpoint]


def finish(writer: DeltaWriter, out: Path, pair: Pair) -> Manifest:
    return writer.finish(
        out,
        identity(*pair),
        files=pair[1].side_files(),
        base_files=pair[0].side_files(),
        compression={"codec": "int2"},
        report={"kl": 0.5},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bytes_do_not_depend_on_how_the_work_was_split(pair: Pair, tmp_path: Path) -> None:
    tensors = pack_all(*pair, "int2")
    once, twice = DeltaWriter(tmp_path / "once"), DeltaWriter(tmp_path / "twice")
    once.add_part("all", tensors)
    for number, tensor in enumerate(reversed(tensors)):
        twice.add_part(f"part-{number}", [tensor])
    twice = DeltaWriter(tmp_path / "twice")  # a restart
    twice.add_part("part-3", [tensors[len(tensors) - 4]])  # done again
    manifest = finish(once, tmp_path / "a", pair)
    assert finish(twice, tmp_path / "b", pair) == manifest
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert finish(twice, tmp_path / "b", pair) == manifest
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_payload_is_plain_safetensors_in_model_order(pair: Pair, tmp_path: Path) -> None:
    tensors = pack_all(*pair, "int2")
    writer = DeltaWriter(tmp_path / "parts")
    writer.add_part("all", tensors)
    manifest = finish(writer, tmp_path / "out", pair)
    found = load_file(tmp_path / "out" / DELTA_FILE)
    for tensor in tensors:
        for plane, values in tensor.planes.items():
            assert torch.equal(found[f"{tensor.entry.name}::{plane}"], values)
    headers = read_header(tmp_path / "out" / DELTA_FILE)
    assert next(iter(headers.values())).begin % 64 == 0
    order = [entry.name for entry in manifest.tensors]
    assert order[0] == "model.embed_tokens.weight"
    assert order[-1] == "model.norm.weight"
    assert max(i for i, n in enumerate(order) if ".0." in n) < min(i for i, n in enumerate(order) if ".1." in n)
    assert list(dict.fromkeys(name.partition("::")[0] for name in headers)) == order


def test_layers_are_ordered_by_number() -> None:
    from deltaserve.delta.layout import model_order

    names = [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.10.a",
        "model.layers.9.a",
        "model.embed_tokens.weight",
    ]
    assert sorted(names, key=model_order) == names[::-1]


def test_sizes_count_everything(pair: Pair, tmp_path: Path) -> None:
    writer = DeltaWriter(tmp_path / "parts")
    writer.add_part("all", pack_all(*pair, "int2"))
    manifest = finish(writer, tmp_path / "out", pair)
    sizes = manifest.sizes
    assert sizes.checkpoint_bytes == sum(header.bytes for header in pair[1].tensors.values())
    assert sizes.parameters == sum(header.elements for header in pair[1].tensors.values())
    stored = [path for path in (tmp_path / "out").iterdir() if path.name != MANIFEST_FILE]
    assert sizes.delta_bytes == sum(path.stat().st_size for path in stored)
    assert {kind: size.tensors for kind, size in sizes.by_class.items()} == {"embedding": 1, "linear": 14, "norm": 5}


def test_files_equal_to_the_base_s_are_named_only(pair: Pair, tmp_path: Path) -> None:
    (pair[1].folder / "tokenizer.json").write_text("another")
    writer = DeltaWriter(tmp_path / "parts")
    writer.add_part("all", pack_all(*pair, "int2"))
    manifest = finish(writer, tmp_path / "out", pair)
    assert {file.path: file.source for file in manifest.files} == {
        DELTA_FILE: "delta",
        "config.json": "base",
        "tokenizer.json": "delta",
    }
    assert set(contents(tmp_path / "out")) == {DELTA_FILE, MANIFEST_FILE, "tokenizer.json"}


@pytest.fixture
def wide_pair(write_model: WriteModel, small_streams: None) -> Pair:
    """A pair whose planes are large enough for lossless streams."""
    config = tiny_config(vocab_size=300, hidden_size=144, intermediate_size=160)
    base, change = random_weights(config, 0), random_weights(config, 1)
    tuned = {name: weight + 0.05 * change[name] for name, weight in base.items()}
    return write_model("wide-base", config, base), write_model("wide-tuned", config, tuned)


@pytest.mark.parametrize("codec", ["int2", "int4", "dense"])
def test_planes_are_stored_as_streams_where_that_pays(wide_pair: Pair, tmp_path: Path, codec: str) -> None:
    tensors = {tensor.entry.name: tensor for tensor in pack_all(*wide_pair, codec, "int3")}
    manifests = {}
    for lossless in (True, False):
        writer = DeltaWriter(tmp_path / f"parts-{lossless}", lossless=lossless)
        writer.add_part("all", list(tensors.values()))
        manifests[lossless] = finish(writer, tmp_path / f"out-{lossless}", wide_pair)
        assert all(part.entry == tensors[part.entry.name].entry for part in writer.read_part("all"))
    small, plain = manifests[True], manifests[False]
    assert not any(entry.lossless for entry in plain.tensors)
    assert b"lossless" not in (tmp_path / "out-False" / MANIFEST_FILE).read_bytes()
    assert [e.in_memory for e in small.tensors] == plain.tensors
    streams = {(e.name, plane): size for e in small.tensors for plane, size in e.lossless.items()}
    assert ("model.embed_tokens.weight", "scale") in streams
    headers = read_header(tmp_path / "out-True" / DELTA_FILE)
    for (name, plane), size in streams.items():
        assert headers[f"{name}::{plane}::rans"].bytes == size.stored_bytes
        assert f"{name}::{plane}" not in headers
        assert size.raw_bytes == tensors[name].planes[plane].nbytes
        assert size.stored_bytes <= 0.98 * size.raw_bytes
    saved = sum(size.raw_bytes - size.stored_bytes for size in streams.values())
    assert sum(s.delta_bytes for s in small.sizes.by_class.values()) == sum(header.bytes for header in headers.values())
    assert sum(s.delta_bytes for s in plain.sizes.by_class.values()) == sum(e.bytes for e in plain.tensors)
    assert plain.sizes.by_class["linear"].delta_bytes > small.sizes.by_class["linear"].delta_bytes or codec == "int2"
    assert sum(e.stored_bytes for e in small.tensors) == sum(e.bytes for e in small.tensors) - saved
    reader = DeltaReader.open(tmp_path / "out-True")
    for name, tensor in tensors.items():
        assert all(torch.equal(plane, tensor.planes[key]) for key, plane in reader.tensor(name).planes.items())


def test_streams_do_not_depend_on_how_the_work_was_split(wide_pair: Pair, tmp_path: Path) -> None:
    tensors = pack_all(*wide_pair, "int4")
    once, twice = DeltaWriter(tmp_path / "once"), DeltaWriter(tmp_path / "twice")
    once.add_part("all", tensors)
    for number, tensor in enumerate(reversed(tensors)):
        twice.add_part(f"part-{number}", [tensor])
    twice.add_part("part-1", twice.read_part("part-1"))  # what was read is stored as before
    assert finish(once, tmp_path / "a", wide_pair) == finish(twice, tmp_path / "b", wide_pair)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_parts_with_damaged_streams_are_dropped(wide_pair: Pair, tmp_path: Path) -> None:
    writer = DeltaWriter(tmp_path)
    writer.add_part("all", pack_all(*wide_pair, "int4"))
    path = tmp_path / "all.part.safetensors"
    place = next(header for name, header in read_header(path).items() if name.endswith("::rans")).end - 1
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)
    with pytest.raises(FormatError):
        writer.read_part("all")
    assert writer.parts() == {}


def test_parts_are_read_back_whole(pair: Pair, tmp_path: Path) -> None:
    tensors = pack_all(*pair, "int3")
    writer = DeltaWriter(tmp_path)
    writer.add_part("layer-0", tensors[:4])
    assert set(writer.parts()) == {"layer-0"}
    for left, right in zip(writer.read_part("layer-0"), tensors[:4], strict=True):
        assert left.entry == right.entry
        assert torch.equal(left.decode(), right.decode())
    writer.drop_part("layer-0")
    assert writer.parts() == {}
    with pytest.raises(FormatError, match="no part"):
        writer.read_part("layer-0")


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_parts_are_dropped(pair: Pair, tmp_path: Path, damage: str) -> None:
    tensors = pack_all(*pair, "int3")
    writer = DeltaWriter(tmp_path)
    writer.add_part("good", tensors[:2])
    writer.add_part("bad", tensors[2:4])
    (path,) = tmp_path.glob("bad*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-1]), "empty": b""}[damage])
    assert set(DeltaWriter(tmp_path).parts()) == {"good"}


def test_temporary_files_of_a_killed_writer_are_no_parts(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    assert DeltaWriter(tmp_path).parts() == {}


def test_a_tensor_may_be_in_one_part_only(pair: Pair, tmp_path: Path) -> None:
    tensors: list[PackedTensor] = pack_all(*pair, "int2")
    writer = DeltaWriter(tmp_path / "parts")
    with pytest.raises(InvalidArgumentError, match="no parts"):
        finish(writer, tmp_path / "out", pair)
    writer.add_part("a", tensors)
    writer.add_part("b", tensors[:1])
    with pytest.raises(InvalidArgumentError, match="two parts"):
        finish(writer, tmp_path / "out", pair)


def test_part_names_cannot_leave_the_folder(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        DeltaWriter(tmp_path).add_part("../x", [])
