"""The store's contract on a real S3 API: conditional creation, parts, ranges, prefixes, refusals."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from deltaserve import store as stores
from deltaserve.errors import DataLossError, NotFoundError, StoreError
from deltaserve.store import Store
from tests.stores.fault_proxy import FaultProxy


@pytest.fixture
def store(bucket: str) -> Store:
    return Store.open(f"s3://{bucket}/some/prefix")


async def test_of_many_writers_one_creates(store: Store) -> None:
    values = [os.urandom(100) for _ in range(12)]
    created = await asyncio.gather(*(store.put_new("jobs/j/000001.json", value) for value in values))
    assert sum(created) == 1
    assert await store.get("jobs/j/000001.json") == values[created.index(True)]
    assert not await store.put_new("jobs/j/000001.json", values[created.index(True)])


async def test_files_are_created_once_and_read_back_in_ranges(faults: FaultProxy, bucket: str, tmp_path: Path) -> None:
    store = Store.open(f"s3://{bucket}/p")
    data = os.urandom(20 << 20)
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(data)
    assert await store.put_file_new("deltas/m/1/delta.safetensors", source)
    assert not await store.put_file_new("deltas/m/1/delta.safetensors", source)
    seen: list[int] = []
    sha256 = hashlib.sha256(data).hexdigest()
    await store.get_file("deltas/m/1/delta.safetensors", target, size=len(data), sha256=sha256, progress=seen.append)
    assert target.read_bytes() == data
    assert seen == [8 << 20, 16 << 20, 20 << 20]
    assert sum(b"range: bytes=" in r.head.lower() for r in faults.seen if r.method == "GET") == 3


async def test_large_files_go_in_parts(
    faults: FaultProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_SINGLE_PUT_BYTES", 4 << 20)
    store = Store.open(f"s3://{bucket}/p")
    data = os.urandom(13 << 20)
    source = tmp_path / "source"
    source.write_bytes(data)
    assert await store.put_file_new("bases/f/model.safetensors", source)
    assert not await store.put_file_new("bases/f/model.safetensors", source)
    assert sum(r.method == "PUT" and "partNumber=" in r.target for r in faults.seen) >= 2
    assert await store.get("bases/f/model.safetensors") == data


async def test_listing_deleting_and_absence(store: Store, tmp_path: Path) -> None:
    keys = [f"deltas/m{i % 3}/{i}/manifest.json" for i in range(30)]
    await asyncio.gather(*(store.put_new(key, b"12") for key in keys))
    assert [(o.key, o.size) for o in await store.list("deltas/")] == [(key, 2) for key in sorted(keys)]
    assert await store.list_folders("deltas/") == ["m0", "m1", "m2"]
    await store.delete(keys[0])
    await store.delete(keys[0])
    assert not await store.exists(keys[0])
    assert await store.exists(keys[1])
    with pytest.raises(NotFoundError, match=keys[0]):
        await store.get(keys[0])
    with pytest.raises(NotFoundError):
        await store.get_file(keys[0], tmp_path / "t", size=2, sha256="")


async def test_listings_go_on_past_one_page(store: Store) -> None:
    gate = asyncio.Semaphore(16)

    async def put(number: int) -> None:
        async with gate:
            assert await store.put_new(f"jobs/{number:05d}/000000.json", b"{}")

    await asyncio.gather(*(put(number) for number in range(1100)))
    assert len(await store.list("jobs/")) == 1100
    assert len(await store.list_folders("jobs/")) == 1100


async def test_another_size_or_hash_is_data_loss(store: Store, tmp_path: Path) -> None:
    await store.put_new("k", b"x" * 1000)
    (tmp_path / "target").write_bytes(b"before")
    for size in (10, 2000, 1000):
        with pytest.raises(DataLossError, match="expected"):
            await store.get_file("k", tmp_path / "target", size=size, sha256="0" * 64)
    assert (tmp_path / "target").read_bytes() == b"before"


async def test_a_missing_bucket_is_named_as_such(bucket: str) -> None:
    for call in (lambda s: s.get("k"), lambda s: s.list("deltas/"), lambda s: s.put_new("k", b"x")):
        with pytest.raises(StoreError, match="create the bucket"):
            await call(Store.open(f"s3://{bucket}-not/p"))
