"""The disk cache holds whole, verified revisions within its budget."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deltaserve.delta.manifest import dump_manifest, parse_manifest
from deltaserve.errors import DataLossError, NotFoundError, QuotaError
from deltaserve.names import parse_revision
from deltaserve.store import Store, delta_key
from services.worker.front.disk import DiskCache

KB = b"x" * 1000


@pytest.fixture
def store() -> Store:
    return Store.open("memory://")


class Caller:
    """Publishes and fetches by name."""

    def __init__(self, cache: DiskCache, store: Store, publish: Any) -> None:
        self.cache, self.store, self.publish = cache, store, publish

    async def add(self, text: str, **files: bytes) -> None:
        await self.publish(self.store, text, {f"{k}.bin": v for k, v in files.items()})

    async def fetch(self, text: str, progress: Any = lambda _: None) -> Path:
        raw = await self.store.get(delta_key(parse_revision(text), "manifest.json"))
        return await self.cache.fetch(parse_revision(text), parse_manifest(raw), raw, progress)

    def names(self) -> list[str]:
        return [str(name) for name in self.cache.entries()]


@pytest.fixture
def caller(store: Store, publish: Any, tmp_path: Path) -> Caller:
    return Caller(DiskCache(tmp_path, 3500, store), store, publish)


async def test_fetch_brings_every_own_file(caller: Caller, tmp_path: Path) -> None:
    await caller.add("m@1", a=KB, b=b"tail")
    seen: list[int] = []
    folder = await caller.fetch("m@1", seen.append)
    assert folder == tmp_path / "m" / "1"
    assert sorted(p.name for p in folder.iterdir()) == ["a.bin", "b.bin", "delta.safetensors", "manifest.json"]
    assert (folder / "a.bin").read_bytes() == KB
    total = caller.cache.entries()[parse_revision("m@1")]
    assert seen[-1] == total == caller.cache.used_bytes
    assert seen == sorted(seen)
    assert await caller.fetch("m@1", seen.append) == folder  # no second download
    assert seen[-1] == total
    assert list((tmp_path / ".partial").iterdir()) == []


async def test_least_recently_used_goes_first(caller: Caller) -> None:
    for number in (1, 2, 3):
        await caller.add(f"m@{number}", a=KB)
        await caller.fetch(f"m@{number}")
    with caller.cache.holding(parse_revision("m@1")):
        pass  # used just now
    await caller.add("m@4", a=KB)
    await caller.fetch("m@4")
    assert caller.names() == ["m@3", "m@1", "m@4"]
    assert not caller.cache.folder(parse_revision("m@2")).exists()


async def test_held_ones_stay(caller: Caller) -> None:
    for number in (1, 2, 3):
        await caller.add(f"m@{number}", a=KB)
    await caller.fetch("m@1")
    await caller.fetch("m@2")
    await caller.add("big@1", a=KB * 2)
    with caller.cache.holding(parse_revision("m@1")), caller.cache.holding(parse_revision("m@2")):
        with pytest.raises(QuotaError, match="2028 are in use; try again later") as refused:
            await caller.fetch("big@1")
        assert refused.value.retry_seconds == 5.0
        await caller.fetch("m@3")
    await caller.fetch("big@1")
    assert caller.names() == ["m@3", "big@1"]


async def test_larger_than_the_budget(caller: Caller) -> None:
    await caller.add("m@1", a=KB)
    await caller.fetch("m@1")
    await caller.add("huge@1", a=KB * 4)
    with pytest.raises(QuotaError, match="raise its cache_bytes") as refused:
        await caller.fetch("huge@1")
    assert refused.value.retry_seconds is None


async def test_corrupt_bytes_do_not_enter(caller: Caller, tmp_path: Path) -> None:
    await caller.add("m@1", a=KB)
    key = delta_key(parse_revision("m@1"), "a.bin")
    await caller.store.delete(key)
    with pytest.raises(NotFoundError):
        await caller.fetch("m@1")
    await caller.store.put_new(key, b"y" * 1000)
    with pytest.raises(DataLossError):
        await caller.fetch("m@1")
    assert caller.names() == []
    assert caller.cache.used_bytes == 0
    assert not (tmp_path / "m").exists()
    assert list((tmp_path / ".partial").iterdir()) == []
    await caller.store.delete(key)
    await caller.store.put_new(key, KB)
    await caller.fetch("m@1")


async def test_a_cancelled_fetch_leaves_nothing(caller: Caller, tmp_path: Path) -> None:
    await caller.add("m@1", a=KB)
    task = asyncio.create_task(caller.fetch("m@1"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.cache.used_bytes == 0
    assert list((tmp_path / ".partial").iterdir()) == []


async def test_published_anew_under_the_same_number(caller: Caller) -> None:
    await caller.add("m@1", a=KB)
    folder = await caller.fetch("m@1")
    for file in ("a.bin", "delta.safetensors", "manifest.json"):
        await caller.store.delete(delta_key(parse_revision("m@1"), file))
    await caller.add("m@1", a=b"new")
    assert await caller.fetch("m@1") == folder
    assert (folder / "a.bin").read_bytes() == b"new"


async def test_a_restart_keeps_what_is_whole(caller: Caller, tmp_path: Path, store: Store) -> None:
    for number in (1, 2, 3):
        await caller.add(f"m@{number}", a=KB)
        await caller.fetch(f"m@{number}")
    (tmp_path / "m" / "1" / "a.bin").write_bytes(b"short")
    (tmp_path / "m" / "2" / "manifest.json").write_bytes(b"{}")
    (tmp_path / ".partial" / "torn").mkdir()
    again = DiskCache(tmp_path, 3500, store)
    assert [str(name) for name in again.entries()] == ["m@3"]
    assert not (tmp_path / "m" / "1").exists()
    assert list((tmp_path / ".partial").iterdir()) == []
    raw = again.manifest(parse_revision("m@3"))
    assert raw is not None
    assert raw == dump_manifest(parse_manifest(raw))
    await caller.fetch("m@1")


async def test_discard(caller: Caller, tmp_path: Path) -> None:
    await caller.add("m@1", a=KB)
    await caller.fetch("m@1")
    await caller.cache.discard(parse_revision("m@1"))
    await caller.cache.discard(parse_revision("m@1"))
    assert caller.names() == []
    assert not (tmp_path / "m" / "1").exists()
