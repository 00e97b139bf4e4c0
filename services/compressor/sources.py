"""Where a job's checkpoint comes from: an upload, a local folder that is allowed, or a remote URI that is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deltaserve.errors import InvalidArgumentError, NotFoundError
from deltaserve.names import check_file_name
from services.compressor import remote
from services.compressor.uploads.uploads import Uploads

UPLOAD_SCHEME = "upload:"


@dataclass(frozen=True, slots=True)
class Source:
    """A source on this machine's disk."""

    folder: Path
    verified: bool  # its contents were checked when it was committed


class Sources:
    """Resolves the URIs of a job."""

    def __init__(self, uploads: Uploads, folders: Sequence[str], prefixes: Sequence[str], disk_reserve: int) -> None:
        self._uploads = uploads
        self._folders = [Path(folder).expanduser().resolve() for folder in folders]
        self._prefixes = [prefix.rstrip("/") + "/" for prefix in prefixes]
        self._disk_reserve = disk_reserve

    def check(self, uri: str, field: str = "source_uri") -> Path | None:
        """Checks that a source may be used; returns its folder when it is on this machine. Blocks.

        Raises:
            InvalidArgumentError: not a URI of the three kinds, or outside what is allowed.
            NotFoundError: no such upload or folder.
            PreconditionError: the upload is not committed.
        """
        if uri.startswith(UPLOAD_SCHEME):
            return self._uploads.committed(uri.removeprefix(UPLOAD_SCHEME)).content
        if _is_remote(uri):
            self._check_prefix(uri, field)
            return None
        folder = self._local(uri, field)
        if not folder.is_dir():
            raise NotFoundError(f"{field}: there is no folder {str(folder)!r}", kind="folder", name=uri)
        for path in folder.iterdir():  # a link must not lead out of what is allowed
            self._check_below(path.resolve(), uri, field)
        return folder

    def check_side_file(self, uri: str, source: Path | None, field: str) -> None:
        """Checks a calibration or evaluation URI: empty, a file inside the source, or as `check`. Blocks."""
        if not uri:
            return
        if _is_remote(uri):
            self._check_prefix(uri, field)
        elif "/" in uri:
            _check_exists(self._local(uri, field), uri, field)
        else:
            check_file_name(uri, field)
            if source is not None:
                _check_exists(source / uri, uri, field)

    async def open(self, uri: str, into: Path) -> Source:
        """Returns the folder of a source, fetched into `into` when it is remote. Raises as `check`."""
        local = await asyncio.to_thread(self.check, uri)
        if local is not None:
            return Source(local, verified=uri.startswith(UPLOAD_SCHEME))
        await remote.fetch_folder(uri, into, self._disk_reserve)
        return Source(into, verified=False)

    async def open_side_file(self, uri: str, source: Path, into: Path, field: str) -> Path | None:
        """Returns the path of a calibration or evaluation file, None for an empty URI. Raises as `check_side_file`."""
        await asyncio.to_thread(self.check_side_file, uri, source, field)
        if not uri:
            return None
        if _is_remote(uri):
            return await remote.fetch_file(uri, into, self._disk_reserve)
        return self._local(uri, field) if "/" in uri else source / uri

    def _local(self, uri: str, field: str) -> Path:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)
        if (parts.scheme == "file" and parts.netloc not in {"", "localhost"}) or not path.is_absolute():
            raise InvalidArgumentError(
                f"{field} is {uri[:200]!r}; expected {UPLOAD_SCHEME}<id>, an absolute path, file:///<path>, "
                "or a URI such as s3://bucket/prefix",
                field=field,
            )
        resolved = path.resolve()
        self._check_below(resolved, uri, field)
        return resolved

    def _check_below(self, path: Path, uri: str, field: str) -> None:
        if not any(path.is_relative_to(folder) for folder in self._folders):
            allowed = ", ".join(map(str, self._folders)) or "none"
            raise InvalidArgumentError(
                f"{field} {uri[:200]!r} is not below the folders this compressor may read ({allowed}); "
                "see its setting --source-folders, or upload the files",
                field=field,
            )

    def _check_prefix(self, uri: str, field: str) -> None:
        if ".." in uri or not any(uri.startswith(prefix) for prefix in self._prefixes):
            raise InvalidArgumentError(
                f"{field} {uri[:200]!r} is not below the URIs this compressor may read "
                f"({', '.join(self._prefixes) or 'none'}); see its setting --source-uris",
                field=field,
            )


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def _check_exists(path: Path, uri: str, field: str) -> None:
    if not path.is_file():
        raise NotFoundError(f"{field}: there is no file {uri[:200]!r}", kind="file", name=uri[:200])
