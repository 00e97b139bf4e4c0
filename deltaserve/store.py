"""The object store that holds everything durable: one async API over folders, memory, S3, GCS and Azure (obstore).

Objects are immutable: they are created once and never overwritten.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import hashlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError as ObjectExistsError
from obstore.exceptions import BaseError, PreconditionError
from obstore.exceptions import NotFoundError as ObjectNotFoundError
from obstore.store import LocalStore, MemoryStore

from deltaserve import files
from deltaserve.backend import Backend
from deltaserve.errors import DataLossError, InvalidArgumentError, NotFoundError, StoreError
from deltaserve.names import RevisionName
from deltaserve.patience import Patience, brief, persevere

P = ParamSpec("P")
R = TypeVar("R")

_SINGLE_PUT_BYTES = 64 << 20  # above this, uploads to remote stores go in parts, which cannot be conditional
_RANGE_BYTES = 8 << 20  # of one request for a part of an object: what is read anew when a connection breaks
_RANGES_AT_ONCE = 4
_NONE = Patience(seconds=0)  # a folder that fails will fail again


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
            raise StoreError(f"the store failed: {brief(error)}") from error

    return wrapper


class Store:
    """An object store, addressed by keys such as `deltas/<model>/<revision>/manifest.json`."""

    def __init__(self, backend: Backend, uri: str, patience: Patience) -> None:
        self.uri = uri
        self._backend = backend
        self._patience = patience

    @classmethod
    def open(cls, uri: str, patience: Patience = Patience()) -> Store:  # noqa: B008 - frozen
        """Opens the store at a URI (`file:///path`, `/path`, `memory://`, `s3://bucket/prefix`, `gs://`, `az://`).

        Credentials and endpoints of remote stores come from their usual environment variables (docs/stores.md).
        Nothing is asked of the store yet.

        Raises:
            InvalidArgumentError: not the URI of a store.
        """
        if uri == "memory://":
            return cls(Backend.local(MemoryStore()), uri, _NONE)
        parts = urlsplit(uri)
        if parts.scheme in {"", "file"}:
            if parts.netloc not in {"", "localhost"}:
                raise InvalidArgumentError(f"store URI {uri!r} names host {parts.netloc!r}; expected file:///<path>")
            root = Path(unquote(parts.path)).expanduser().resolve()
            root.mkdir(parents=True, exist_ok=True)
            return cls(Backend.local(LocalStore(root), root), f"file://{root}", _NONE)
        try:
            return cls(Backend.remote(uri, patience), uri, patience)
        except (BaseError, ValueError) as error:
            raise InvalidArgumentError(f"cannot open store {uri!r}: {brief(error)}") from error

    async def _try(self, what: str, call: Callable[[], Awaitable[R]]) -> R:
        return await persevere(call, what, self._patience)

    @_translated
    async def get(self, key: str) -> bytes:
        """Returns a whole object. Raises NotFoundError."""

        async def attempt() -> bytes:
            response = await obstore.get_async(self._backend.reads, key)
            return bytes(await response.bytes_async())

        return await self._try(f"get {key!r}", attempt)

    @_translated
    async def put_new(self, key: str, data: bytes) -> bool:
        """Creates an object; returns False, and changes nothing, if it exists."""
        if self._backend.root is not None:
            return await asyncio.to_thread(files.write_new, self._backend.root / key, data)
        return await self._create(key, data)

    @_translated
    async def put_file_new(self, key: str, path: Path) -> bool:
        """Creates an object from a local file; returns False, and changes nothing, if it exists.

        On remote stores a file above 64 MiB is uploaded in parts after a check of existence: two writers that race on
        the same key may then both succeed, and the later bytes stay.
        """
        if self._backend.root is not None:
            return await asyncio.to_thread(files.copy_new, path, self._backend.root / key)
        if (await asyncio.to_thread(path.stat)).st_size <= _SINGLE_PUT_BYTES:
            return await self._create(key, await asyncio.to_thread(path.read_bytes))
        if await self.exists(key):
            return False
        parts = self._backend.parts
        await self._try(f"put {key!r}", lambda: obstore.put_async(parts, key, path, use_multipart=True))
        return True

    async def _create(self, key: str, data: bytes) -> bool:
        doubtful = False  # an attempt failed, though the store may have carried it out

        async def attempt() -> bool:
            nonlocal doubtful
            try:
                await obstore.put_async(self._backend.creates, key, data, mode="create", use_multipart=False)
            except (ObjectExistsError, PreconditionError):
                return False
            except (BaseError, OSError):
                doubtful = True
                raise
            return True

        if await self._try(f"create {key!r}", attempt):
            return True
        return doubtful and await self.get(key) == data

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
                    f"object {key!r} has {found[0]} bytes with sha256 {found[1] or 'unknown'}; "
                    f"expected {size} bytes with sha256 {sha256}; "
                    "restore it or publish the revision again",
                    object=key,
                )
            await asyncio.to_thread(files.publish, temp, path)
        finally:
            temp.unlink(missing_ok=True)

    @_translated
    async def _download(
        self, key: str, temp: Path, expected: int, progress: Callable[[int], None] | None
    ) -> tuple[int, str]:
        """Returns bytes and sha256 of an object that is in `temp` then; no sha256, and no download, of another size."""
        reads = self._backend.reads
        size = (await self._try(f"look up {key!r}", lambda: obstore.head_async(reads, key)))["size"]
        if size != expected:
            return size, ""
        digest, received = hashlib.sha256(), 0
        with temp.open("wb") as file:
            async with contextlib.aclosing(self.pieces(key, size)) as pieces:
                async for piece in pieces:
                    received += len(piece)
                    await asyncio.to_thread(_append, file.write, digest.update, piece)
                    if progress is not None:
                        progress(received)
        return received, digest.hexdigest()

    async def pieces(self, key: str, size: int) -> AsyncGenerator[bytes, None]:
        """Yields an object's bytes in order, a few requests of 8 MiB under way; close it with `contextlib.aclosing`.

        Raises:
            StoreError: the store failed, or the object is not there any more.
        """

        async def fetch(start: int) -> bytes:
            length = min(_RANGE_BYTES, size - start)
            what = f"read {length} bytes at {start} of {key!r}"
            reads = self._backend.reads
            return bytes(await self._try(what, lambda: obstore.get_range_async(reads, key, start=start, length=length)))

        starts = iter(range(0, size, _RANGE_BYTES))
        under_way = deque(asyncio.create_task(fetch(start)) for start in itertools.islice(starts, _RANGES_AT_ONCE))
        try:
            while under_way:
                piece = await under_way[0]
                under_way.popleft()
                under_way.extend(asyncio.create_task(fetch(start)) for start in itertools.islice(starts, 1))
                yield piece
        except (BaseError, OSError) as error:
            raise StoreError(f"the store lost {key!r} while it was read: {brief(error)}", object=key) from error
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    @_translated
    async def list(self, prefix: str) -> builtins.list[StoredObject]:
        """Returns all objects below a prefix that ends at a `/`, by key."""

        async def attempt() -> builtins.list[StoredObject]:
            found: builtins.list[StoredObject] = []
            async for batch in obstore.list(self._backend.reads, prefix):
                found += [StoredObject(o["path"], o["size"], o["last_modified"]) for o in batch]
            return found

        found = await self._try(f"list {prefix!r}", attempt)
        return sorted((o for o in found if "/.tmp-" not in f"/{o.key}"), key=lambda o: o.key)

    @_translated
    async def list_folders(self, prefix: str) -> builtins.list[str]:
        """Returns the names (without the prefix) of the folders directly below a prefix."""
        reads = self._backend.reads
        result = await self._try(f"list {prefix!r}", lambda: obstore.list_with_delimiter_async(reads, prefix))
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in result["common_prefixes"])

    @_translated
    async def exists(self, key: str) -> bool:
        """Tells whether an object exists."""
        reads = self._backend.reads
        try:
            await self._try(f"look up {key!r}", lambda: obstore.head_async(reads, key))
        except (ObjectNotFoundError, FileNotFoundError):
            return False
        return True

    @_translated
    async def delete(self, key: str) -> None:
        """Removes an object; no error if there is none."""
        if self._backend.root is not None:
            await asyncio.to_thread(files.remove, self._backend.root / key)
            return
        reads = self._backend.reads
        try:
            await self._try(f"delete {key!r}", lambda: obstore.delete_async(reads, key))
        except (ObjectNotFoundError, FileNotFoundError):
            return


def _append(write: Callable[[bytes], object], update: Callable[[bytes], object], data: bytes) -> None:
    write(data)
    update(data)


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
