"""Which files a machine may find after it lost power, by the file operations that a program really made.

`recording` notes what happens below a folder: changed bytes, new, linked, renamed, removed names, and what was synced.
`crash_states` then makes states that a file system may leave: everything that was synced is there; of the rest any
part: bytes cut off, zeroed, or left as before, and names of any subset. That is weaker than what ext4 or xfs promise.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        kind: "write" (of `inode`, its bytes now are `data`), "sync", "name" (`path` names `inode`, 0: nothing, −1: a
            folder), "sync names" (of the folder `path`), or "ack" (`path` is what was acknowledged).
    """

    kind: str
    inode: int = 0
    path: str = ""
    data: bytes = b""


@dataclass
class Recorder:
    """The operations below `root` so far."""

    root: Path
    ops: list[Op] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)
    _bytes: dict[int, bytes] = field(default_factory=dict)
    _ids: dict[int, int] = field(default_factory=dict)  # our numbers of inodes, never used twice
    _last: int = 0

    def acknowledge(self, what: str) -> None:
        """Notes that a client was told of something: from here on no crash may lose it."""
        self.scan()
        self.ops.append(Op("ack", path=what))

    def synced(self, path: str) -> None:
        """Notes an fsync."""
        inside = os.path.relpath(path, self.root)
        if inside.startswith(".."):
            return
        if os.path.isdir(path):  # noqa: PTH112 - of a descriptor's link
            self.ops.append(Op("sync names", path="" if inside == "." else inside))
        else:
            self.ops.append(Op("sync", inode=self._ids[os.stat(path).st_ino]))  # noqa: PTH116

    def scan(self) -> None:
        """Notes what has changed: new bytes first, then names."""
        names: dict[str, int] = {}
        for path in sorted(self.root.rglob("*")):
            inside = str(path.relative_to(self.root))
            if path.is_dir():
                names[inside] = -1
                continue
            found = path.stat().st_ino
            inode = self._ids.setdefault(found, 1 + max(self._last, *self._ids.values(), 0))
            names[inside] = inode
            data = path.read_bytes()
            if self._bytes.get(inode) != data:
                self._bytes[inode] = data
                self.ops.append(Op("write", inode=inode, data=data))
        for inside in [*names, *(self._names.keys() - names.keys())]:
            if names.get(inside, 0) != self._names.get(inside, 0):
                self.ops.append(Op("name", inode=names.get(inside, 0), path=inside))
        used = set(names.values())
        self._last = max(self._last, *self._ids.values(), 0)
        self._ids = {inode: own for inode, own in self._ids.items() if own in used}  # the file system uses them again
        self._names = names


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Records every operation below `root` that this process makes meanwhile."""
    recorder = Recorder(root)
    recorder.scan()
    real_sync = os.fsync

    def noted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            recorder.scan()
            result = real(*args, **options)
            recorder.scan()
            return result

        return call

    def sync(handle: int) -> None:
        recorder.scan()
        real_sync(handle)
        recorder.synced(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: PTH115

    functions = ("link", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate")
    patches = [mock.patch.object(os, name, noted(getattr(os, name))) for name in functions]
    patches.append(mock.patch.object(os, "fsync", sync))
    for patch in patches:
        patch.start()
    try:
        yield recorder
    finally:
        for patch in patches:
            patch.stop()
        recorder.scan()


@dataclass(frozen=True, slots=True)
class CrashState:
    """Files by path inside the folder, folders, and what had been acknowledged."""

    files: dict[str, bytes]
    folders: frozenset[str]
    acknowledged: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        """Writes it all into an empty folder."""
        for name in sorted(self.folders):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def crash_states(ops: list[Op], rng: random.Random, each: int) -> Iterator[CrashState]:
    """Yields states after a crash behind every operation: all of it kept, nothing unsynced kept, and `each` between."""
    for count in range(len(ops) + 1):
        kept: list[Callable[[], float]] = [lambda: 1.0, lambda: 0.0, *[rng.random] * each]
        for chance in kept:
            yield _state(ops[:count], rng, chance)


def _state(ops: list[Op], rng: random.Random, chance: Callable[[], float]) -> CrashState:
    names: dict[str, int] = {}
    contents: dict[int, bytes] = {}
    acknowledged = []
    for number, op in enumerate(ops):
        rest = ops[number + 1 :]
        if op.kind == "write":
            safe = any(later.kind == "sync" and later.inode == op.inode for later in rest)
            old = contents.get(op.inode, b"")
            contents[op.inode] = op.data if safe or chance() > rng.random() else _torn(old, op.data, rng, chance())
        elif op.kind == "name":
            parent = os.path.dirname(op.path)  # noqa: PTH120
            safe = any(later.kind == "sync names" and later.path == parent for later in rest)
            if safe or chance() > rng.random():
                names[op.path] = op.inode
        elif op.kind == "ack":
            acknowledged.append(op.path)
    there = {path: inode for path, inode in names.items() if inode}
    whole = {path: inode for path, inode in there.items() if _reachable(path, there)}
    files = {path: contents.get(inode, b"") for path, inode in whole.items() if inode > 0}
    return CrashState(files, frozenset(p for p, inode in whole.items() if inode < 0), tuple(acknowledged))


def _torn(old: bytes, new: bytes, rng: random.Random, chance: float) -> bytes:
    """Returns what may be on the disk of a write that was not synced."""
    if not chance:
        return old
    same = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    cut = rng.randrange(same, len(new) + 1)  # bytes that were not written again stay as they are
    return rng.choice((old, new[:cut], new[:cut] + bytes(len(new) - cut), old[:cut] + new[cut:]))


def _reachable(path: str, names: dict[str, int]) -> bool:
    parent = os.path.dirname(path)  # noqa: PTH120
    return not parent or (names.get(parent) == -1 and _reachable(parent, names))
