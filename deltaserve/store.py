"""The object store that holds everything durable: one async API over folders, memory, S3, GCS and Azure (obstore).

Objects are immutable: they are created once and never overwritten.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError as ObjectExistsError
from obstore.exceptions import BaseError, PreconditionError
from obstore.exceptions import NotFoundError as ObjectNotFoundError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from deltaserve import files
from deltaserve.errors import DataLossError, InvalidArgumentError, NotFoundError, StoreError
from deltaserve.names import RevisionName

P = ParamSpec("P")
R = TypeVar("R")

_SINGLE_PUT_BYTES = 64 << 20  # above this, uploads to remote stores go in parts, which cannot be conditional


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a listing; `size` in bytes."""

    key: str
    size: int
    modified: datetime


def _translated(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Turns failures of the store behind into errors of ours."""

    @functools.wraps(function)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await function(*args, **kwargs)
        except (ObjectNotFoundError, FileNotFoundError) as error:
            key = str(args[1]) if len(args) > 1 else ""
            raise NotFoundError(f"the store has no object {key!r}", kind="object", name=key) from error
        except (BaseError, OSError) as error:
            raise StoreError(f"the store failed: {error}") from error

    return wrapper


class Store:
    """An object store, addressed by keys such as `deltas/<model>/<revision>/manifest.json`."""

    def __init__(self, backend: ObjectStore, uri: str, root: Path | None = None) -> None:
        self.uri = uri
        self._backend = backend
        self._root = root  # of a local store: its writes are ours, since obstore's do not fsync

    @classmethod
    def open(cls, uri: str) -> Store:
        """Opens the store at a URI (`file:///path`, `/path`, `memory://`, `s3://bucket/prefix`, `gs://`, `az://`).

        Credentials and endpoints of remote stores come from their usual environment variables.
        """
        if uri == "memory://":
            return cls(MemoryStore(), uri)
        parts = urlsplit(uri)
        if parts.scheme in {"", "file"}:
            if parts.netloc not in {"", "localhost"}:
                raise InvalidArgumentError(f"store URI {uri!r} names host {parts.netloc!r}; expected file:///<path>")
            root = Path(unquote(parts.path)).expanduser().resolve()
            root.mkdir(parents=True, exist_ok=True)
            return cls(LocalStore(root), f"file://{root}", root)
        try:
            return cls(from_url(uri), uri)
        except (BaseError, ValueError) as error:
            raise InvalidArgumentError(f"cannot open store {uri!r}: {error}") from error

    @_translated
    async def get(self, key: str) -> bytes:
        """Returns a whole object. Raises NotFoundError."""
        response = await obstore.get_async(self._backend, key)
        return bytes(await response.bytes_async())

    @_translated
    async def put_new(self, key: str, data: bytes) -> bool:
        """Creates an object; returns False, and changes nothing, if it exists."""
        if self._root is not None:
            return await asyncio.to_thread(files.write_new, self._root / key, data)
        return await self._create(key, data)

    @_translated
    async def put_file_new(self, key: str, path: Path) -> bool:
        """Creates an object from a local file; returns False, and changes nothing, if it exists.

        On remote stores a file above 64 MiB is uploaded in parts after a check of existence: two writers that race on
        the same key may then both succeed, and the later bytes stay.
        """
        if self._root is not None:
            return await asyncio.to_thread(files.copy_new, path, self._root / key)
        if (await asyncio.to_thread(path.stat)).st_size <= _SINGLE_PUT_BYTES:
            return await self._create(key, path)
        if await self.exists(key):
            return False
        await obstore.put_async(self._backend, key, path, use_multipart=True)
        return True

    async def _create(self, key: str, data: bytes | Path) -> bool:
        try:
            await obstore.put_async(self._backend, key, data, mode="create", use_multipart=False)
        except (ObjectExistsError, PreconditionError):
            return False
        return True

    async def get_file(
        self, key: str, path: Path, *, size: int, sha256: str, progress: Callable[[int], None] | None = None
    ) -> None:
        """Downloads an object to `path`, whole and verified or not at all.

        Args:
            key: the object.
            path: where to; replaced if it exists.
            size: expected bytes.
            sha256: expected hash, lower-case hex.
            progress: called with the bytes that have arrived so far.

        Raises:
            NotFoundError: no such object.
            DataLossError: another size or hash than expected; `path` is untouched.
        """
        temp = files.temp_beside(path)
        try:
            found = await self._download(key, temp, size, progress)
            if found != (size, sha256):
                raise DataLossError(
                    f"object {key!r} {_described(found[0], size)} with sha256 {found[1]}; "
                    f"expected {size} bytes with sha256 {sha256}; "
                    "restore it or publish the revision again",
                    object=key,
                )
            await asyncio.to_thread(files.publish, temp, path)
        finally:
            temp.unlink(missing_ok=True)

    @_translated
    async def _download(
        self, key: str, temp: Path, limit: int, progress: Callable[[int], None] | None
    ) -> tuple[int, str]:
        response = await obstore.get_async(self._backend, key)
        digest, received = hashlib.sha256(), 0
        with temp.open("wb") as file:
            async for piece in response.stream(min_chunk_size=4 << 20):
                received += len(piece)
                if received > limit:
                    break  # already wrong: do not fill the disk with it
                await asyncio.to_thread(_append, file.write, digest.update, bytes(piece))
                if progress is not None:
                    progress(received)
        return received, digest.hexdigest()

    @_translated
    async def list(self, prefix: str) -> builtins.list[StoredObject]:
        """Returns all objects below a prefix that ends at a `/`, by key."""
        found: builtins.list[StoredObject] = []
        async for batch in obstore.list(self._backend, prefix):
            found += [StoredObject(o["path"], o["size"], o["last_modified"]) for o in batch]
        return sorted((o for o in found if "/.tmp-" not in f"/{o.key}"), key=lambda o: o.key)

    @_translated
    async def list_folders(self, prefix: str) -> builtins.list[str]:
        """Returns the names (without the prefix) of the folders directly below a prefix."""
        result = await obstore.list_with_delimiter_async(self._backend, prefix)
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in result["common_prefixes"])

    @_translated
    async def exists(self, key: str) -> bool:
        """Tells whether an object exists."""
        try:
            await obstore.head_async(self._backend, key)
        except (ObjectNotFoundError, FileNotFoundError):
            return False
        return True

    @_translated
    async def delete(self, key: str) -> None:
        """Removes an object; no error if there is none."""
        if self._root is not None:
            await asyncio.to_thread(files.remove, self._root / key)
            return
        try:
            await obstore.delete_async(self._backend, key)
        except (ObjectNotFoundError, FileNotFoundError):
            return


def _append(write: Callable[[bytes], object], update: Callable[[bytes], object], data: bytes) -> None:
    write(data)
    update(data)


def _described(found: int, expected: int) -> str:
    return f"has more than {expected} bytes" if found > expected else f"has {found} bytes"


def delta_key(name: RevisionName, file: str) -> str:
    """Key of a file of a revision."""
    return f"deltas/{name.model}/{name.revision}/{file}"


def base_key(fingerprint: str, file: str) -> str:
    """Key of a file of a base."""
    return f"bases/{fingerprint}/{file}"


def job_prefix(job_id: str) -> str:
    """Prefix of a job's records."""
    return f"jobs/{job_id}/"


def setting_prefix(kind: str, name: str) -> str:
    """Prefix of the records of one setting."""
    return f"settings/{kind}/{name}/"
