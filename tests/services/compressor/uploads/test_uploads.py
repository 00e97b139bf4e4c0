"""Opening, limits, committing and expiry of uploads on disk."""

import hashlib
import time
from pathlib import Path

import google_crc32c
import pytest

from deltaserve.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    QuotaError,
)
from services.compressor.uploads.declaration import Declaration, DeclaredFile
from services.compressor.uploads.upload import Upload
from services.compressor.uploads.uploads import Limits, Uploads

ROOMY = Limits(1 << 40, 0)


def declared(upload_id: str = "u", **contents: bytes) -> Declaration:
    files = tuple(
        DeclaredFile(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in (contents or {"f": b"abc"}).items()
    )
    return Declaration(upload_id=upload_id, files=files, config={}, tensors=())


def send(upload: Upload, path: str, data: bytes) -> None:
    upload.append(path, 0, data, google_crc32c.value(data))


def accept(_: Upload) -> None:
    """A check that finds nothing wrong."""


def test_an_upload_survives_a_restart(tmp_path: Path) -> None:
    send(Uploads(tmp_path, ROOMY).start(declared(f=b"abc", g=b"defg")), "f", b"abc")
    again = Uploads(tmp_path, ROOMY)
    upload = again.start(declared(f=b"abc", g=b"defg"))
    assert [(p.path, p.received, p.size) for p in upload.progress()] == [("f", 3, 3), ("g", 0, 4)]
    with pytest.raises(PreconditionError, match="'g' has 0 of 4 bytes"):
        upload.commit(accept)
    with pytest.raises(PreconditionError, match="4 bytes are missing"):
        again.committed("u")
    send(upload, "g", b"defg")
    upload.commit(accept)
    upload.commit(accept)
    assert Uploads(tmp_path, ROOMY).committed("u").content.joinpath("g").read_bytes() == b"defg"


def test_a_wrong_hash_drops_that_file_only(tmp_path: Path) -> None:
    upload = Uploads(tmp_path, ROOMY).start(declared(f=b"abc", g=b"defg"))
    send(upload, "f", b"xyz")
    send(upload, "g", b"defg")
    with pytest.raises(DataLossError, match="'f' has sha256"):
        upload.commit(accept)
    assert [p.received for p in upload.progress()] == [0, 4]
    send(upload, "f", b"abc")
    upload.commit(accept)


def test_a_refused_content_is_not_committed(tmp_path: Path) -> None:
    upload = Uploads(tmp_path, ROOMY).start(declared())
    send(upload, "f", b"abc")

    def refuse(_: Upload) -> None:
        raise InvalidArgumentError("NaN")

    with pytest.raises(InvalidArgumentError):
        upload.commit(refuse)
    assert not upload.committed


def test_unknown_uploads_and_files(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, ROOMY)
    with pytest.raises(NotFoundError, match="no upload 'nope'"):
        uploads.get("nope")
    with pytest.raises(InvalidArgumentError):
        uploads.get("../etc")
    with pytest.raises(NotFoundError, match=r"no file '\.\./f'"):
        uploads.start(declared()).append("../f", 0, b"", 0)


def test_an_id_belongs_to_its_files(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, ROOMY)
    uploads.start(declared(f=b"abc"))
    with pytest.raises(AlreadyExistsError, match="other files"):
        uploads.start(declared(f=b"abd"))


def test_quota_and_disk(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, Limits(10, 0))
    uploads.start(declared("a", f=b"123456"))
    with pytest.raises(QuotaError, match=r"declares 5 bytes.*hold 6 of the quota of 10 bytes, 4 are left"):
        uploads.start(declared("b", f=b"12345"))
    uploads.start(declared("c", f=b"1234"))
    with pytest.raises(QuotaError, match="has 0 bytes left") as refused:
        Uploads(tmp_path / "other", Limits(10, 1 << 60)).start(declared())
    assert refused.value.subject == "disk"
    assert not (tmp_path / "b").exists()


def test_old_uploads_expire_unless_a_job_waits_for_them(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, ROOMY)
    for name in ("a", "b"):
        uploads.start(declared(name))
    assert uploads.expire(time.time() - 60, ()) == []
    assert uploads.expire(time.time() + 60, {"b"}) == ["a"]
    with pytest.raises(NotFoundError):
        uploads.get("a")
    uploads.get("b")


def test_a_damaged_declaration_is_in_nobodys_way(tmp_path: Path) -> None:
    Uploads(tmp_path, ROOMY).start(declared("a"))
    (tmp_path / "a" / "upload.json").write_bytes(b'{"upload_id": \xff')
    again = Uploads(tmp_path, ROOMY)
    again.start(declared("b"))
    with pytest.raises(DataLossError, match="declaration of upload 'a' is damaged"):
        again.get("a")
    assert again.expire(time.time() + 60, {"b"}) == ["a"]
