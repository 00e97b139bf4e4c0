"""Sources that are fetched through obstore, and files beside a source."""

from pathlib import Path

import pytest

from deltaserve.errors import InvalidArgumentError, NotFoundError, PreconditionError, QuotaError
from services.compressor import remote
from services.compressor.sources import Sources
from services.compressor.uploads.uploads import Limits, Uploads


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    (folder / "deeper").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.model", "pytorch_model.bin", "deeper/x.json"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


async def test_a_folder_is_fetched_without_what_is_not_wanted(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for _ in range(2):
        await remote.fetch_folder(f"file://{there}", here, 0)
    assert sorted(p.name for p in here.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]
    assert (here / "config.json").read_bytes() == (there / "config.json").read_bytes()


async def test_only_the_missing_files_are_fetched_again(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    await remote.fetch_folder(f"file://{there}", here, 0)
    whole = (here / "config.json").stat().st_mtime_ns
    (here / "model.safetensors").write_bytes(b"torn")
    await remote.fetch_folder(f"file://{there}", here, 0)
    assert (here / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
    assert (here / "config.json").stat().st_mtime_ns == whole


async def test_sources_that_cannot_be_used(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with pytest.raises(QuotaError):
        await remote.fetch_folder(f"file://{there}", here, 1 << 60)
    (there / "model.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match="pytorch_model"):
        await remote.fetch_folder(f"file://{there}", here, 0)
    with pytest.raises(NotFoundError, match="no safetensors"):
        await remote.fetch_folder(f"file://{there}/deeper", here, 0)
    with pytest.raises((PreconditionError, NotFoundError)):
        await remote.fetch_folder("nonsense://x/y", here, 0)
    assert not here.exists() or not list(here.iterdir())


async def test_single_files(there: Path, tmp_path: Path) -> None:
    path = await remote.fetch_file(f"file://{there}/config.json", tmp_path / "here", 0)
    assert path.read_bytes() == (there / "config.json").read_bytes()
    with pytest.raises(NotFoundError):
        await remote.fetch_file(f"file://{there}/nope.jsonl", tmp_path / "here", 0)
    with pytest.raises(InvalidArgumentError):
        await remote.fetch_file(f"file://{there}/..", tmp_path / "here", 0)


async def test_what_is_allowed(there: Path, tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", Limits(1, 0))
    sources = Sources(uploads, [str(there)], ["s3://bucket/in"], 0)
    assert sources.check(str(there)) == there
    assert sources.check(f"file://{there}/deeper") == there / "deeper"
    assert sources.check("s3://bucket/in/model") is None
    for uri in ("s3://bucket/input", "s3://bucket/in/../x", "s3://other/in", str(tmp_path), f"{there}-not"):
        with pytest.raises(InvalidArgumentError):
            sources.check(uri)
    opened = await sources.open(str(there), tmp_path / "unused")
    assert (opened.folder, opened.verified) == (there, False)
    inside = await sources.open_side_file("config.json", there, tmp_path, "f")
    absolute = await sources.open_side_file(f"{there}/config.json", there, tmp_path, "f")
    assert inside == absolute == there / "config.json"
    assert await sources.open_side_file("", there, tmp_path, "f") is None
