"""One upload on the compressor's disk: its declaration, its files, and whether it was committed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deltaserve import files
from deltaserve.errors import DataLossError, NotFoundError, PreconditionError
from services.compressor.uploads.declaration import Declaration
from services.compressor.uploads.received import ReceivedFile

DECLARATION_FILE = "upload.json"
_COMMITTED_FILE = "committed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file is, in bytes."""

    path: str
    received: int
    size: int


class Upload:
    """An open or committed upload. Thread-safe; every method blocks on the disk.

    Attributes:
        declaration: what the client said.
        content: the folder with the files.
    """

    def __init__(self, folder: Path, declaration: Declaration) -> None:
        """Opens the upload in `folder`, with what a former process left there."""
        self.declaration = declaration
        self.content = folder / "files"
        self._folder = folder
        self._lock = threading.Lock()  # of the files
        self._commit_lock = threading.Lock()  # of verification, which takes minutes and must not block progress()
        self._files = {
            file.path: ReceivedFile(self.content / file.path, folder / "journals" / file.path, file.size)
            for file in declaration.files
        }

    @property
    def committed(self) -> bool:
        """Whether the upload was verified and closed."""
        return (self._folder / _COMMITTED_FILE).exists()

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return sum(file.size - file.received for file in self._files.values())

    @property
    def touched(self) -> float:
        """When it last changed, in seconds since the epoch."""
        return max(path.stat().st_mtime for path in (self._folder, self.content, *self.content.iterdir()))

    def append(self, path: str, offset: int, data: bytes, crc32c: int) -> None:
        """Adds a chunk; see ReceivedFile.append. Raises NotFoundError for a file that was not declared."""
        if path not in self._files:
            raise NotFoundError(
                f"upload {self.declaration.upload_id!r} has no file {path[:200]!r}; declared are "
                f"{[file.path for file in self.declaration.files][:20]}",
                kind="file",
                name=path[:200],
            )
        with self._lock:
            self._files[path].append(offset, data, crc32c)

    def progress(self) -> list[Progress]:
        """Makes what has arrived durable and tells it."""
        with self._lock:
            for file in self._files.values():
                file.sync()
            return [Progress(path, file.received, file.size) for path, file in self._files.items()]

    def commit(self, check: Callable[[Upload], None]) -> None:
        """Verifies sizes, hashes and contents, and closes the upload; does nothing if that was done before.

        Args:
            check: looks into the files, and raises when they must not be compressed.

        Raises:
            PreconditionError: bytes are missing.
            DataLossError: a hash differs; the files it names were dropped and are to be sent again.
        """
        with self._commit_lock:
            if self.committed:
                return
            self._check_complete()
            self._check_hashes()
            check(self)
            files.write_new(self._folder / _COMMITTED_FILE, b"")

    def _check_complete(self) -> None:
        for file in self.progress():
            if file.received < file.size:
                raise PreconditionError(
                    f"file {file.path!r} has {file.received} of {file.size} bytes; send the rest, then commit",
                    path=file.path,
                    expected_offset=file.received,
                    size=file.size,
                )

    def _check_hashes(self) -> None:
        bad = []
        for declared in self.declaration.files:
            found = _sha256(self.content / declared.path)
            if found != declared.sha256:
                with self._lock:
                    self._files[declared.path].drop()
                bad.append(f"{declared.path!r} has sha256 {found}, declared was {declared.sha256}")
        if bad:
            raise DataLossError(f"{'; '.join(bad)}. Dropped: upload again", upload=self.declaration.upload_id)


def load_declaration(folder: Path) -> Declaration | None:
    """Returns the declaration kept in an upload's folder, or None when the folder is not an upload.

    Raises:
        DataLossError: it is damaged.
    """
    path = folder / DECLARATION_FILE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Declaration)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataLossError(
            f"the declaration of upload {folder.name!r} is damaged on the compressor's disk: {error}; "
            "upload under another id",
            upload=folder.name,
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
