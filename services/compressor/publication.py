"""Publishes a packed delta as the next revision of its model: all of it or, to every reader, nothing.

Order of writes below `deltas/<model>/<n>/`: `claim.json` takes the number for one job (and stays for ever, so that no
number is used twice), then the files and `report.html`, then `manifest.json`, whose presence is the publication. Each
is created only once, and each step may be repeated after a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from deltaserve.catalog import published_revisions
from deltaserve.delta.manifest import MANIFEST_FILE, FileEntry, Manifest, dump_manifest, parse_manifest
from deltaserve.errors import DataLossError, FormatError, InternalError, NotFoundError
from deltaserve.names import RevisionName
from deltaserve.report.page import PAGE_FILE, render
from deltaserve.store import Store, delta_key

CLAIM_FILE = "claim.json"


async def reserve(store: Store, model: str, job_id: str) -> str:
    """Returns the revision number that this job publishes under: the next free one, or the one it already claimed."""
    claim = json.dumps({"job": job_id}).encode()
    published = await published_revisions(store, model)
    number = int(published[-1]) + 1 if published else 1
    while True:
        key = delta_key(RevisionName(model, str(number)), CLAIM_FILE)
        if await store.put_new(key, claim) or await store.get(key) == claim:
            return str(number)
        number += 1


async def upload_files(store: Store, name: RevisionName, folder: Path) -> Manifest:
    """Writes all files of a packed delta but its manifest, which is returned, and a page of its quality report.

    The page is rendered here from the manifest's report: one that came with an upload could hold anything.

    Raises:
        DataLossError: a file in `folder` does not match the manifest there.
        FormatError: the manifest names a file that the revision itself needs the name of.
    """
    manifest = parse_manifest(await asyncio.to_thread((folder / MANIFEST_FILE).read_bytes))
    for entry in manifest.files:
        if entry.path in {MANIFEST_FILE, CLAIM_FILE, PAGE_FILE}:
            raise FormatError(f"manifest names a file {entry.path!r}; that name is reserved")
        if entry.source == "delta":
            await asyncio.to_thread(_check_file, folder / entry.path, entry)
            await _put(store, delta_key(name, entry.path), folder / entry.path, entry)
    if manifest.report is not None:
        page = await asyncio.to_thread(render, manifest.report, str(name))
        await store.put_new(delta_key(name, PAGE_FILE), page.encode())
    return manifest


async def publish_manifest(store: Store, name: RevisionName, manifest: Manifest, job_id: str) -> None:
    """Writes the manifest under the revision's name, and with it publishes the revision.

    Raises:
        InternalError: the revision was published by another job.
    """
    made_by: dict[str, Any] = manifest.compression | {"job": job_id}
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    final = msgspec.structs.replace(
        manifest, model=name.model, revision=name.revision, created=created, compression=made_by
    )
    created_now = await store.put_new(delta_key(name, MANIFEST_FILE), dump_manifest(final))
    if not created_now and not await published_by(store, name, job_id):
        raise InternalError(f"revision {name} was published by another job than {job_id!r}")


async def published_by(store: Store, name: RevisionName, job_id: str) -> bool:
    """Tells whether a revision is published, and by this job."""
    try:
        manifest = parse_manifest(await store.get(delta_key(name, MANIFEST_FILE)))
    except NotFoundError:
        return False
    return manifest.compression.get("job") == job_id


async def withdraw(store: Store, name: RevisionName) -> None:
    """Deletes a revision, its manifest first; only the claim stays, so that its number is not used again."""
    await store.delete(delta_key(name, MANIFEST_FILE))
    for found in await store.list(delta_key(name, "")):
        if not found.key.endswith(f"/{CLAIM_FILE}"):
            await store.delete(found.key)


async def _put(store: Store, key: str, path: Path, entry: FileEntry) -> None:
    if await store.put_file_new(key, path):
        return
    check = path.with_name(f".check-{path.name}")  # left by an attempt that was cut off: is it the same?
    try:
        await store.get_file(key, check, size=entry.size, sha256=entry.sha256)
    except DataLossError:
        await store.delete(key)
        await store.put_file_new(key, path)
    finally:
        await asyncio.to_thread(check.unlink, missing_ok=True)


def _check_file(path: Path, entry: FileEntry) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256 or path.stat().st_size != entry.size:
        raise DataLossError(
            f"{entry.path!r} has {path.stat().st_size} bytes with sha256 {found}; "
            f"its manifest says {entry.size} bytes with sha256 {entry.sha256}",
            path=entry.path,
        )
