from pathlib import Path

import torch

from deltaserve.delta.coding import code_dense
from services.compressor.pipeline.parts import Parts

NORM = code_dense("model.norm.weight", torch.ones(4))


def test_parts_survive_with_their_errors(tmp_path: Path):
    parts = Parts(tmp_path, {"a": 1})
    parts.add("head", [NORM], {"x": 0.5})
    again = Parts(tmp_path, {"a": 1})
    assert "head" in again
    assert again.bytes == parts.bytes > 0
    assert again.created == parts.created
    assert again.errors() == {"x": 0.5}
    assert torch.equal(again.read("head")["model.norm.weight"].decode(), torch.ones(4))


def test_parts_of_another_run_are_dropped(tmp_path: Path):
    Parts(tmp_path, {"a": 1}).add("head", [NORM], {})
    assert "head" not in Parts(tmp_path, {"a": 2})


def test_damaged_and_half_written_parts_are_made_anew(tmp_path: Path):
    Parts(tmp_path, {}).add("head", [NORM], {})
    path = next((tmp_path / "parts").glob("head.part*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "parts" / ".tmp-0").write_bytes(b"half")
    assert "head" not in Parts(tmp_path, {})
    assert not (tmp_path / "parts" / ".tmp-0").exists()
    (tmp_path / "state.json").write_text("{")
    assert "head" not in Parts(tmp_path, {})
