"""The disk cache of packed deltas: what came from the store stays in `<root>/<model>/<revision>/` within a budget."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltaserve import files
from deltaserve.delta.manifest import MANIFEST_FILE, FileEntry, Manifest, parse_manifest
from deltaserve.errors import DeltaServeError, QuotaError
from deltaserve.names import RevisionName, parse_revision
from deltaserve.store import Store, delta_key

log = logging.getLogger(__name__)

_PARTIAL = ".partial"  # folder of what is still arriving, or going; emptied at the start


@dataclass(slots=True)
class _Entry:
    size: int
    manifest: bytes


class DiskCache:
    """Revisions on local disk, verified when they arrived. Least recently used ones go first, held ones never.

    A folder is complete or absent: files arrive under another name, the manifest among them, and are renamed at once.
    """

    def __init__(self, root: Path, budget_bytes: int, store: Store) -> None:
        """Takes over what a former process left below `root`; computes nothing, call it off the event loop."""
        self._root = root
        self._budget = budget_bytes
        self._store = store
        self._held: Counter[RevisionName] = Counter()
        self.evictions = 0  # since the start
        self._reserved = 0  # bytes of revisions that are arriving
        self._moving = asyncio.Lock()  # a folder's leaving and its return under the same name must not overlap
        shutil.rmtree(root / _PARTIAL, ignore_errors=True)
        (root / _PARTIAL).mkdir(parents=True)
        self._entries = _scan(root)  # least recently used first

    @property
    def used_bytes(self) -> int:
        """Bytes of complete and of arriving revisions."""
        return sum(entry.size for entry in self._entries.values()) + self._reserved

    @property
    def budget_bytes(self) -> int:
        """Most bytes of complete and arriving revisions."""
        return self._budget

    def entries(self) -> dict[RevisionName, int]:
        """Returns the bytes of every complete revision."""
        return {name: entry.size for name, entry in self._entries.items()}

    def manifest(self, name: RevisionName) -> bytes | None:
        """Returns the manifest of a complete revision, None for any other."""
        entry = self._entries.get(name)
        return None if entry is None else entry.manifest

    def folder(self, name: RevisionName) -> Path:
        """Returns where a revision is, or would be."""
        return self._root / name.model / name.revision

    @contextlib.contextmanager
    def holding(self, name: RevisionName) -> Iterator[None]:
        """Keeps a revision from being evicted while the block runs, and makes it the most recently used."""
        self._held[name] += 1
        if name in self._entries:
            self._entries[name] = self._entries.pop(name)
        try:
            yield
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    async def fetch(
        self, name: RevisionName, manifest: Manifest, raw: bytes, progress: Callable[[int], None] = lambda _: None
    ) -> Path:
        """Returns the folder of a revision, downloading it first unless the very same is there.

        Only one call for a revision may run at a time.

        Args:
            name: the revision.
            manifest: its manifest.
            raw: the manifest's bytes as stored.
            progress: called with the bytes that have arrived so far.

        Raises:
            QuotaError: it does not fit the cache beside what is held.
            DataLossError: the store's bytes are not what the manifest says.
            NotFoundError, StoreError: the store lacks a file, or failed.
        """
        entry = self._entries.get(name)
        if entry is not None and entry.manifest == raw:
            return self.folder(name)
        await self.discard(name)  # deleted and published anew under the same number
        size = total_bytes(manifest)
        await self._make_room(name, size)
        self._reserved += size
        try:
            await self._download(name, own_files(manifest), raw, progress)
        finally:
            self._reserved -= size
        self._entries[name] = _Entry(size, raw)
        return self.folder(name)

    async def discard(self, name: RevisionName) -> None:
        """Removes a revision, held or not; no error if it is not there."""
        async with self._moving:
            if self._entries.pop(name, None) is not None:
                await asyncio.to_thread(self._remove, name)

    async def _download(
        self, name: RevisionName, wanted: list[FileEntry], raw: bytes, progress: Callable[[int], None]
    ) -> None:
        temp = self._root / _PARTIAL / uuid.uuid4().hex
        temp.mkdir()
        done = 0
        try:
            for file in wanted:
                await self._store.get_file(
                    delta_key(name, file.path),
                    temp / file.path,
                    size=file.size,
                    sha256=file.sha256,
                    progress=lambda arrived, before=done: progress(before + arrived),  # type: ignore[misc]
                )
                done += file.size
            async with self._moving:
                await asyncio.to_thread(self._complete, name, temp, raw)
        finally:
            await asyncio.to_thread(shutil.rmtree, temp, ignore_errors=True)

    async def _make_room(self, name: RevisionName, size: int) -> None:
        while self.used_bytes + size > self._budget:
            victim = next((n for n in self._entries if n not in self._held), None)
            if victim is None:
                never = size > self._budget
                raise QuotaError(
                    f"{name} takes {size} bytes on disk; of the worker's delta cache of {self._budget} bytes "
                    f"{self.used_bytes} are in use; {'raise its cache_bytes' if never else 'try again later'}",
                    subject="worker disk cache",
                    retry_seconds=None if never else 5.0,
                )
            log.info("evicting %s from the disk cache", victim)
            self.evictions += 1
            await self.discard(victim)

    def _complete(self, name: RevisionName, temp: Path, raw: bytes) -> None:
        files.write_new(temp / MANIFEST_FILE, raw)
        target = self.folder(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temp.rename(target)
        files.sync_folder(target.parent)

    def _remove(self, name: RevisionName) -> None:
        # renamed first: a half-removed folder must never look complete
        leaving = self._root / _PARTIAL / uuid.uuid4().hex
        with contextlib.suppress(FileNotFoundError):
            self.folder(name).rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def own_files(manifest: Manifest) -> list[FileEntry]:
    """Returns the files that are stored with the delta, not with its base."""
    return [entry for entry in manifest.files if entry.source == "delta"]


def total_bytes(manifest: Manifest) -> int:
    """Returns the bytes of a delta's own files."""
    return sum(entry.size for entry in own_files(manifest))


def _scan(root: Path) -> dict[RevisionName, _Entry]:
    found: list[tuple[float, RevisionName, _Entry]] = []
    for path in root.glob(f"*/*/{MANIFEST_FILE}"):
        folder = path.parent
        try:
            name = parse_revision(f"{folder.parent.name}@{folder.name}")
            raw = path.read_bytes()
            manifest = parse_manifest(raw)
            whole = all((folder / f.path).stat().st_size == f.size for f in own_files(manifest))
        except (DeltaServeError, OSError) as error:
            log.warning("%s in the disk cache is unusable and removed: %s", folder, error)
            whole = False
        if whole:
            found.append((path.stat().st_mtime, name, _Entry(total_bytes(manifest), raw)))
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return {name: entry for _, name, entry in sorted(found, key=lambda item: item[0])}
