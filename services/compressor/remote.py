"""Fetches checkpoints and files from remote object stores (s3://, gs://, az://, https://) through obstore."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.exceptions import NotFoundError as ObjectNotFoundError
from obstore.store import from_url

from deltaserve import files
from deltaserve.delta.headers import refuse_pickle
from deltaserve.errors import NotFoundError, PreconditionError, QuotaError
from deltaserve.names import check_file_name
from deltaserve.store import Store

# what a checkpoint or packed delta consists of; anything else beside it (pickled twins, logs) stays where it is
WANTED = (".safetensors", ".json", ".jsonl", ".txt", ".model", ".jinja")


async def fetch_folder(uri: str, folder: Path, disk_reserve: int) -> None:
    """Downloads the files directly below a URI, skipping those that are there already.

    Raises:
        NotFoundError: nothing is there.
        InvalidArgumentError: there are weights, but not as safetensors.
        PreconditionError: it cannot be read.
        StoreError: it could be read at first, and then no more.
        QuotaError: the disk is too small.
    """
    try:
        backend = from_url(uri)
        listing = await obstore.list_with_delimiter_async(backend)
        found = {meta["path"].rsplit("/", 1)[-1]: meta["size"] for meta in listing["objects"]}
        wanted = {name: size for name, size in found.items() if name.endswith(WANTED)}
        if not any(name.endswith(".safetensors") for name in wanted):
            refuse_pickle(found)
            raise NotFoundError(f"{uri!r} holds no safetensors; found {sorted(found)[:20]}", kind="folder", name=uri)
        for name in wanted:
            check_file_name(name, "source_uri")
        missing = await asyncio.to_thread(_missing, folder, wanted, disk_reserve)
        for name in missing:
            await _download(Store.open(uri), name, wanted[name], folder / name)
    except (BaseError, ValueError, OSError) as error:
        raise PreconditionError(f"cannot read {uri!r}: {error}", uri=uri) from error


async def fetch_file(uri: str, folder: Path, disk_reserve: int) -> Path:
    """Downloads one object into a folder and returns its path. Raises as `fetch_folder`."""
    parent, _, name = uri.rpartition("/")
    path = folder / check_file_name(name, "uri")
    try:
        backend = from_url(parent)
        size = (await obstore.head_async(backend, name))["size"]
        if await asyncio.to_thread(_missing, folder, {name: size}, disk_reserve):
            await _download(Store.open(parent), name, size, path)
    except (ObjectNotFoundError, FileNotFoundError) as error:
        raise NotFoundError(f"there is no object {uri!r}", kind="object", name=uri) from error
    except (BaseError, ValueError, OSError) as error:
        raise PreconditionError(f"cannot read {uri!r}: {error}", uri=uri) from error
    return path


async def _download(store: Store, name: str, size: int, path: Path) -> None:
    temp = files.temp_beside(path)
    try:
        with temp.open("wb") as file:
            async with contextlib.aclosing(store.pieces(name, size)) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
        await asyncio.to_thread(files.publish, temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _missing(folder: Path, wanted: Mapping[str, int], reserve: int) -> list[str]:
    """Returns the wanted files (name to bytes) that are not here yet. Raises QuotaError when they do not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [n for n, size in wanted.items() if not (folder / n).is_file() or (folder / n).stat().st_size != size]
    needed, free = sum(wanted[name] for name in names), shutil.disk_usage(folder).free - reserve
    if needed > free:
        raise QuotaError(
            f"the source has {needed} bytes to fetch; the compressor's disk has {max(0, free)} bytes left",
            subject="disk",
            needed=needed,
            free=max(0, free),
        )
    return names
