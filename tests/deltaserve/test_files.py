from pathlib import Path

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
