"""Publication of a packed delta: through the service, and its steps repeated after a crash."""

import asyncio
import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import pytest

from deltaserve.catalog import Catalog
from deltaserve.delta.manifest import FileEntry, dump_manifest, parse_manifest
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


async def test_the_page_is_stored_beside_the_files_and_is_none_of_them(
    store: Store, packed_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "with-report"
    shutil.copytree(packed_folder, folder)
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    failures = {"gate": {"passed": False, "failures": ["<b>7</b> is too much"]}}
    (folder / "manifest.json").write_bytes(dump_manifest(msgspec.structs.replace(manifest, report=failures)))
    (folder / "report.html").write_text("<script>what an upload brings</script>")
    name = await publish(store, folder, "j")
    page = (await store.get("deltas/m/1/report.html")).decode()
    assert "<title>m@1 · quality report</title>" in page
    assert "&lt;b&gt;7&lt;/b&gt; is too much" in page
    assert "what an upload brings" not in page
    assert "report.html" not in {file.path for file in (await Catalog(store).manifest(name)).files}
    await publication.withdraw(store, name)
    assert [o.key for o in await store.list("deltas/m/1/")] == ["deltas/m/1/claim.json"]


async def test_a_delta_may_not_bring_the_page(store: Store, packed_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    shutil.copytree(packed_folder, folder)
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    (folder / "report.html").write_bytes(b"x")
    entry = FileEntry(path="report.html", size=1, sha256=hashlib.sha256(b"x").hexdigest())
    named = msgspec.structs.replace(manifest, files=[*manifest.files, entry])
    (folder / "manifest.json").write_bytes(dump_manifest(named))
    with pytest.raises(FormatError, match="reserved"):
        await publication.upload_files(store, RevisionName("m", "1"), folder)
