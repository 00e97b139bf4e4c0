"""`deltaserve info` on manifests, deltas, checkpoints and single files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaserve.cli.main import main
from deltaserve.delta.manifest import (
    BaseRef,
    ClassSize,
    FileEntry,
    Manifest,
    Sizes,
    TensorEntry,
    dump_manifest,
)

Write = Callable[[Path, dict[str, list[int]]], None]


@pytest.fixture
def delta(tmp_path: Path, make_safetensors: Write) -> Path:
    folder = tmp_path / "delta"
    folder.mkdir()
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    make_safetensors(folder / "delta.safetensors", {f"{q_proj}::codes": [64], f"{q_proj}::scale": [8], "x::v": [1]})
    tensors = [
        TensorEntry(
            name=q_proj, kind="linear", shape=[64, 16], dtype="BF16", codec="sign1", base=q_proj, bytes=144,
            sha256="0" * 64,
        ),
        TensorEntry(
            name="model.embed_tokens.weight", kind="embedding", shape=[32, 16], dtype="BF16", codec="int4",
            base="model.embed_tokens.weight", params={"group_size": 16}, bytes=320, sha256="0" * 64,
        ),
    ]  # fmt: skip
    manifest = Manifest(
        format="deltaserve-delta",
        version=1,
        model="french",
        revision="3",
        created="2026-01-01T00:00:00Z",
        base=BaseRef(fingerprint="a" * 64, architecture="LlamaForCausalLM"),
        config={},
        tensors=tensors,
        files=[
            FileEntry(path="delta.safetensors", size=600, sha256="0" * 64),
            FileEntry(path="tokenizer.json", size=10, sha256="0" * 64, source="base"),
        ],
        sizes=Sizes(
            parameters=1536,
            checkpoint_bytes=3072,
            delta_bytes=600,
            by_class={
                "linear": ClassSize(tensors=1, parameters=1024, checkpoint_bytes=2048, delta_bytes=144),
                "embedding": ClassSize(tensors=1, parameters=512, checkpoint_bytes=1024, delta_bytes=320),
            },
        ),
    )
    (folder / "manifest.json").write_bytes(dump_manifest(manifest))
    return folder


@pytest.mark.parametrize("file", ["manifest.json", ""])
def test_a_delta_tells_sizes_codecs_and_ratios(delta: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(delta / file)]) == 0
    rows = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["linear"] == ["linear", "1", "1,024", "2.0", "kB", "144", "B", "14.2x", "1.12"]
    assert rows["everything stored"][-2:] == ["5.1x", "3.12"]
    assert rows["sign1"] == ["sign1", "1", "1,024", "144", "B", "1.12"]
    assert rows["int4, groups of 16"][-1] == "5.00"
    assert "french@3" in rows
    assert any("tokenizer.json" in " ".join(row) for row in rows.values())


def test_memory_is_told_where_it_differs_from_the_disk(delta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(delta)]) == 0
    assert "in memory" not in capsys.readouterr().out
    fields = json.loads((delta / "manifest.json").read_bytes())
    fields["tensors"][1]["lossless"] = {"codes": {"raw_bytes": 256, "stored_bytes": 200}}
    (delta / "manifest.json").write_text(json.dumps(fields))
    assert main(["info", str(delta)]) == 0
    said = capsys.readouterr().out
    assert "planes take 464 B in memory" in said
    assert "lossless streams, 408 B" in " ".join(said.split())
    assert any(line.split()[-3:] == ["264", "B", "4.12"] for line in said.splitlines())
    assert main(["info", str(delta), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["planes"] == {"memory_bytes": 464, "stored_bytes": 408}


def test_a_delta_as_json(delta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(delta), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["ratio"] == pytest.approx(5.12)
    assert told["bits_per_parameter"] == pytest.approx(3.125)
    assert told["by_class"]["linear"]["delta_bytes"] == 144


def test_a_payload_without_its_manifest(delta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(delta / "delta.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "packed delta" in said
    assert "linear" in said


def test_a_checkpoint_folder_and_a_file(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (checkpoint, checkpoint / "model.safetensors"):
        assert main(["info", str(path)]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["linear", "1", "1,024", "2.0", "kB", "16.00"] in rows
        assert ["all", "2", "1,040", "2.1", "kB", "16.00"] in rows
    assert main(["info", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["norm"]["parameters"] == 16


def test_bad_files_are_one_error(checkpoint: Path, delta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    (delta / "manifest.json").write_text("{")
    for path in (weights, delta, checkpoint / "training_args.bin", checkpoint / "config.json"):
        assert main(["info", str(path)]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.startswith("error: ")
    assert main(["info", str(checkpoint / "nowhere")]) == 2
