"""A disk that is full: refusals that say so, nothing half, nothing left behind, and going on once there is room."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from deltaserve.errors import QuotaError, StoreError
from deltaserve.store import Store
from services.compressor.uploads.declaration import Declaration, DeclaredFile
from services.compressor.uploads.uploads import Limits, Uploads

SIZE = 4 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("NO SMALL DISK: mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_store_on_a_full_disk_takes_nothing_half_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = Store.open(str(small_disk))
    big = tmp_path / "big"
    big.write_bytes(os.urandom(SIZE + 1))
    free = os.statvfs(small_disk).f_bavail
    for _ in range(3):
        with pytest.raises(StoreError):
            await store.put_file_new("deltas/m/1/delta.safetensors", big)
        with pytest.raises(StoreError):
            await store.put_new("jobs/j/000000.json", big.read_bytes())
    assert await store.list("") == []
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    assert free - os.statvfs(small_disk).f_bavail <= 8  # folders
    assert await store.put_new("jobs/j/000000.json", b"{}")


def test_an_upload_goes_on_when_there_is_room_again(small_disk: Path) -> None:
    data = os.urandom(3 << 20)
    sha256 = hashlib.sha256(data).hexdigest()
    uploads = Uploads(small_disk / "uploads", Limits(1 << 40, 0))
    upload = uploads.start(
        Declaration(upload_id="u", files=(DeclaredFile("f", len(data), sha256),), config={}, tensors=())
    )
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    chunks = [(at, data[at : at + (1 << 20)]) for at in range(0, len(data), 1 << 20)]
    refused = 0
    for at, chunk in chunks:
        while True:
            try:
                upload.append("f", at, chunk, google_crc32c.value(chunk))
                break
            except QuotaError as error:
                assert error.subject == "disk"  # noqa: PT017 - what is refused is sent again
                refused += 1
                ballast.unlink()
    assert refused == 1
    upload.commit(lambda _: None)
    assert (small_disk / "uploads/u/files/f").read_bytes() == data
