"""Publication of a packed delta: through the service, and its steps repeated after a crash."""

import asyncio
import json
from pathlib import Path

import pytest

from deltaserve.catalog import Catalog
from deltaserve.delta.manifest import parse_manifest
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import DataLossError, FormatError, InternalError, NotFoundError
from deltaserve.names import RevisionName
from deltaserve.store import Store
from services.compressor import publication


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


async def publish(store: Store, folder: Path, job_id: str, model: str = "m") -> RevisionName:
    name = RevisionName(model, await publication.reserve(store, model, job_id))
    manifest = await publication.upload_files(store, name, folder)
    await publication.publish_manifest(store, name, manifest, job_id)
    return name


async def test_what_is_published_reads_back(store: Store, packed_folder: Path, tmp_path: Path) -> None:
    name = await publish(store, packed_folder, "j")
    assert str(name) == "m@1"
    assert await Catalog(store).resolve("m") == name
    reader = DeltaReader.open(tmp_path / "store/deltas/m/1", verify=True)
    assert (reader.manifest.model, reader.manifest.revision) == ("m", "1")
    assert reader.manifest.compression["job"] == "j"
    before = parse_manifest((packed_folder / "manifest.json").read_bytes())
    assert reader.manifest.tensors == before.tensors
    assert reader.manifest.report == before.report


async def test_numbers_are_never_used_twice(store: Store, packed_folder: Path) -> None:
    assert (await publish(store, packed_folder, "a")).revision == "1"
    second = await publish(store, packed_folder, "b")
    assert second.revision == "2"
    await publication.withdraw(store, second)
    with pytest.raises(NotFoundError):
        await Catalog(store).resolve("m@2")
    assert (await publish(store, packed_folder, "c")).revision == "3"
    assert [o.key for o in await store.list("deltas/m/2/")] == ["deltas/m/2/claim.json"]


async def test_jobs_that_publish_at_once_get_numbers_of_their_own(store: Store, packed_folder: Path) -> None:
    names = await asyncio.gather(*(publish(store, packed_folder, f"j{n}") for n in range(6)))
    assert sorted(int(name.revision) for name in names) == [1, 2, 3, 4, 5, 6]


async def test_every_step_may_be_repeated(store: Store, packed_folder: Path) -> None:
    assert await publication.reserve(store, "m", "j") == await publication.reserve(store, "m", "j") == "1"
    name = RevisionName("m", "1")
    await store.put_new("deltas/m/1/delta.safetensors", b"torn")  # by an attempt that was cut off
    for _ in range(2):
        manifest = await publication.upload_files(store, name, packed_folder)
    assert await store.get("deltas/m/1/delta.safetensors") == (packed_folder / "delta.safetensors").read_bytes()
    assert not await publication.published_by(store, name, "j")
    for _ in range(2):
        await publication.publish_manifest(store, name, manifest, "j")
    assert await publication.published_by(store, name, "j")
    with pytest.raises(InternalError, match="another job"):
        await publication.publish_manifest(store, name, manifest, "other")


async def test_files_that_are_not_what_the_manifest_says(store: Store, packed_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for path in packed_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = bytearray((folder / "delta.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "delta.safetensors").write_bytes(data)
    with pytest.raises(DataLossError, match="manifest says"):
        await publish(store, folder, "j")
    with pytest.raises(NotFoundError):
        await Catalog(store).resolve("m")


@pytest.mark.parametrize("name", ["manifest.json", "claim.json"])
async def test_reserved_names(store: Store, packed_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    manifest = json.loads((packed_folder / "manifest.json").read_bytes())
    manifest["files"].append({"path": name, "size": 0, "sha256": "0" * 64})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "delta.safetensors").write_bytes((packed_folder / "delta.safetensors").read_bytes())
    with pytest.raises(FormatError, match="reserved"):
        await publish(store, folder, "j")
    with pytest.raises(NotFoundError):
        await Catalog(store).resolve("m")
