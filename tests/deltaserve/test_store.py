import hashlib
from pathlib import Path

import pytest

from deltaserve.errors import DataLossError, InvalidArgumentError, NotFoundError
from deltaserve.store import Store


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.open("memory://" if request.param == "memory" else f"file://{tmp_path}/store")


async def test_objects_are_created_once(store: Store) -> None:
    assert await store.put_new("a/b/c", b"first")
    assert not await store.put_new("a/b/c", b"second")
    assert await store.get("a/b/c") == b"first"


async def test_files_go_in_once_and_come_out_verified(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(data)
    assert await store.put_file_new("k", source)
    assert not await store.put_file_new("k", source)
    seen: list[int] = []
    await store.get_file("k", target, size=len(data), sha256=hashlib.sha256(data).hexdigest(), progress=seen.append)
    assert target.read_bytes() == data
    assert seen == sorted(seen)
    assert seen[-1] == len(data)


@pytest.mark.parametrize("wrong", ["size", "short", "hash"])
async def test_a_wrong_object_is_data_loss_and_leaves_the_target_alone(
    store: Store, tmp_path: Path, wrong: str
) -> None:
    data = b"x" * 1000
    await store.put_new("k", data)
    target = tmp_path / "target"
    target.write_bytes(b"before")
    size = {"size": 10, "short": 2000, "hash": 1000}[wrong]
    with pytest.raises(DataLossError, match="expected"):
        await store.get_file("k", target, size=size, sha256="0" * 64)
    assert target.read_bytes() == b"before"
    assert not list(tmp_path.glob(".tmp-*"))


async def test_missing_objects(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'nope/x'"):
        await store.get("nope/x")
    with pytest.raises(NotFoundError):
        await store.get_file("nope/x", tmp_path / "t", size=1, sha256="")
    assert not await store.exists("nope/x")
    assert await store.list("nope/") == []
    assert await store.list_folders("nope/") == []
    await store.delete("nope/x")


async def test_listing(store: Store) -> None:
    for key in ("m/b/2", "m/a/1", "m/a/3", "n/1"):
        await store.put_new(key, b"12")
    assert [(o.key, o.size) for o in await store.list("m/")] == [("m/a/1", 2), ("m/a/3", 2), ("m/b/2", 2)]
    assert await store.list_folders("m/") == ["a", "b"]
    await store.delete("m/a/1")
    assert [o.key for o in await store.list("m/a/")] == ["m/a/3"]


def test_bad_uris_are_refused() -> None:
    for uri in ("file://host/path", "gopher://x", "s3://"):
        with pytest.raises(InvalidArgumentError):
            Store.open(uri)
