from pathlib import Path

import pytest

from deltaserve import files


def test_write_new_creates_once_and_leaves_no_temp(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert files.write_new(path, b"one")
    assert not files.write_new(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["b"]


def test_publish_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"one", b"two"):
        temp = files.temp_beside(path)
        temp.write_bytes(data)
        files.publish(temp, path)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_folders_are_durable_before_anything_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3


def test_removed_files_stay_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"")
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    files.remove(tmp_path / "x")
    files.remove(tmp_path / "x")
    assert synced == [tmp_path]
    assert not (tmp_path / "x").exists()
