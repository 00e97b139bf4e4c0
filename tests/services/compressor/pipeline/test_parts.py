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


def filled(work: Path, coded: dict[str, str]) -> Parts:
    parts = Parts(work, {})
    parts.begin(coded)
    for name in coded:
        if name not in parts:
            parts.add(name, [NORM], {f"{name}.x": 0.5})
    return parts


def test_an_attempt_keeps_the_parts_before_the_first_that_differs(tmp_path: Path):
    filled(tmp_path, {"a": "int2", "b": "int2", "c": "int2", "d": "int2"})
    parts = Parts(tmp_path, {})
    parts.begin({"a": "int2", "b": "int3", "c": "int2", "d": "int2"})
    assert [name in parts for name in "abcd"] == [True, False, False, False]
    assert set(parts.errors()) == {"a.x"}
    assert parts.bytes == filled(tmp_path / "other", {"a": "int2"}).bytes
    assert {path.name.split(".")[0] for path in parts.folder.iterdir()} == {"a"}
    assert [name in Parts(tmp_path, {}) for name in "abcd"] == [True, False, False, False]


def test_the_same_attempt_again_drops_nothing(tmp_path: Path):
    coded = {"a": "int2", "b": "int3"}
    filled(tmp_path, coded)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    again = filled(tmp_path, coded)
    assert "a" in again
    assert "b" in again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == written


def test_an_attempt_that_was_broken_off_goes_on_but_not_as_another(tmp_path: Path):
    """What a part follows from was said before it was coded: parts of a killed attempt are never taken for others."""
    first = Parts(tmp_path, {})
    first.begin({"a": "int2", "b": "int2"})
    first.add("a", [NORM], {})
    same, other = Parts(tmp_path, {}), Parts(tmp_path, {})
    same.begin({"a": "int2", "b": "int2"})
    assert "a" in same
    other.begin({"a": "int4", "b": "int2"})
    assert "a" not in other


def test_attempts_are_kept_for_this_run_alone(tmp_path: Path):
    parts = Parts(tmp_path, {"a": 1})
    assert parts.attempts == []
    parts.note({"bits": 2.0})
    parts.note({"bits": 3.0})
    parts.begin({"a": "int2"})
    assert Parts(tmp_path, {"a": 1}).attempts == parts.attempts == [{"bits": 2.0}, {"bits": 3.0}]
    (parts.folder / "profile.json").write_text("{}")
    assert Parts(tmp_path, {"a": 2}).attempts == []
    assert list((tmp_path / "parts").iterdir()) == []
