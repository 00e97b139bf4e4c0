"""All uploads of a compressor: opening, finding, limits, and forgetting old ones."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deltaserve import files
from deltaserve.errors import AlreadyExistsError, DataLossError, NotFoundError, PreconditionError, QuotaError
from deltaserve.names import check_name
from services.compressor.uploads.declaration import Declaration
from services.compressor.uploads.upload import DECLARATION_FILE, Upload, load_declaration

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What uploads may take, in bytes."""

    quota: int  # all uploads together, by their declared sizes
    disk_reserve: int  # of the disk, stays free


class Uploads:
    """Uploads below one folder, one folder each. Thread-safe; every method blocks on the disk."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root = root
        self._limits = limits
        self._open: dict[str, Upload] = {}
        self._lock = threading.Lock()
        files.make_folder(root)

    def start(self, declaration: Declaration) -> Upload:
        """Opens an upload, or finds the one with this id and these files again.

        Raises:
            AlreadyExistsError: the id is taken by an upload of other files.
            QuotaError: the declared sizes exceed the quota or the free disk.
        """
        with self._lock:
            found = self._find(declaration.upload_id)
            if found is not None:
                _check_same(found.declaration, declaration)
                return found
            self._check_limits(declaration)
            folder = self._root / declaration.upload_id
            files.write_new(folder / DECLARATION_FILE, msgspec.json.encode(declaration))
            return self._opened(folder, declaration)

    def get(self, upload_id: str) -> Upload:
        """Returns an upload. Raises NotFoundError."""
        check_name(upload_id, "upload_id")
        with self._lock:
            found = self._find(upload_id)
        if found is None:
            raise NotFoundError(
                f"there is no upload {upload_id!r}; it was never started here, or has expired: start it again",
                kind="upload",
                name=upload_id,
            )
        return found

    def committed(self, upload_id: str) -> Upload:
        """Returns an upload that was committed. Raises NotFoundError, PreconditionError."""
        upload = self.get(upload_id)
        if not upload.committed:
            raise PreconditionError(
                f"upload {upload_id!r} is not committed: {upload.missing} bytes are missing; finish it, then commit it",
                upload=upload_id,
                missing=upload.missing,
            )
        return upload

    def expire(self, before: float, keep: Collection[str]) -> list[str]:
        """Deletes uploads that last changed before a time (seconds since the epoch) and are not in `keep`."""
        expired = []
        with self._lock:
            for folder in list(self._root.iterdir()):
                upload = self._sound(folder.name)
                touched = upload.touched if upload else folder.stat().st_mtime
                if touched < before and folder.name not in keep:
                    self._open.pop(folder.name, None)
                    (folder / DECLARATION_FILE).unlink(missing_ok=True)  # first: half a folder is no upload
                    shutil.rmtree(folder)
                    expired.append(folder.name)
        return expired

    def _find(self, upload_id: str) -> Upload | None:
        if upload_id in self._open:
            return self._open[upload_id]
        folder = self._root / upload_id
        declaration = load_declaration(folder)
        return self._opened(folder, declaration) if declaration else None

    def _sound(self, upload_id: str) -> Upload | None:
        """As `_find`; None too for one that is damaged, which must not be in the way of all others."""
        try:
            return self._find(upload_id)
        except DataLossError as error:
            log.warning("upload %s is left out: %s", upload_id, error)
            return None

    def _opened(self, folder: Path, declaration: Declaration) -> Upload:
        upload = Upload(folder, declaration)
        self._open[declaration.upload_id] = upload
        return upload

    def _check_limits(self, new: Declaration) -> None:
        uploads = [u for u in (self._sound(folder.name) for folder in self._root.iterdir()) if u is not None]
        used = sum(upload.declaration.bytes for upload in uploads)
        if used + new.bytes > self._limits.quota:
            raise QuotaError(
                f"upload {new.upload_id!r} declares {new.bytes} bytes; other uploads hold {used} of the quota of "
                f"{self._limits.quota} bytes, {max(0, self._limits.quota - used)} are left",
                subject="uploads",
                needed=new.bytes,
                used=used,
                quota=self._limits.quota,
            )
        promised = sum(upload.missing for upload in uploads)
        free = shutil.disk_usage(self._root).free - self._limits.disk_reserve - promised
        if new.bytes > free:
            raise QuotaError(
                f"upload {new.upload_id!r} declares {new.bytes} bytes; the compressor's disk has {max(0, free)} bytes "
                f"left, after {promised} promised to other uploads and {self._limits.disk_reserve} kept in reserve",
                subject="disk",
                needed=new.bytes,
                free=max(0, free),
            )


def _check_same(old: Declaration, new: Declaration) -> None:
    before, now = {(f.path, f.size, f.sha256) for f in old.files}, {(f.path, f.size, f.sha256) for f in new.files}
    if before != now:
        differing = sorted({path for path, _, _ in before ^ now})
        raise AlreadyExistsError(
            f"upload id {new.upload_id!r} is taken by an upload of other files (differing: {differing[:10]}); "
            "choose another id",
            upload=new.upload_id,
        )
