"""Durable local files: temp file, fsync, rename or link, fsync the folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def temp_beside(path: Path) -> Path:
    """Returns an unused path in the folder of `path`, which is created; the name begins with `.tmp-`."""
    make_folder(path.parent)
    return path.parent / f".tmp-{uuid.uuid4().hex}"


def make_folder(path: Path) -> None:
    """Creates a folder and those above it, each of them durable before anything is put into it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def publish(temp: Path, path: Path) -> None:
    """Makes the finished `temp` durable and renames it to `path`, replacing what was there."""
    sync_file(temp)
    temp.replace(path)
    sync_folder(path.parent)


def publish_new(temp: Path, path: Path) -> bool:
    """Makes the finished `temp` durable and links it to `path`; False, and no change, if `path` exists."""
    sync_file(temp)
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def write_new(path: Path, data: bytes) -> bool:
    """Creates `path` with `data`, whole or not at all; False, and no change, if it exists."""
    temp = temp_beside(path)
    with _no_litter(temp):
        temp.write_bytes(data)
        return publish_new(temp, path)


def copy_new(source: Path, path: Path) -> bool:
    """Copies `source` to `path`, whole or not at all; False, and no change, if `path` exists."""
    temp = temp_beside(path)
    with _no_litter(temp):
        shutil.copyfile(source, temp)
        return publish_new(temp, path)


@contextlib.contextmanager
def _no_litter(temp: Path) -> Iterator[None]:
    """Removes a temporary file when it cannot be finished: on a full disk it would keep the disk full."""
    try:
        yield
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Removes a file, durably: it will not be back after a crash. No error if there is none."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flushes a file's bytes to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flushes a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
