"""One file of an upload on disk: bytes are appended at checked offsets and survive a kill at any moment.

Beside the data lies a journal with one entry a chunk. After a crash the journal tells how far the data can be trusted:
up to its last synced entry without looking, and on from there for as long as each chunk's CRC-32C still matches. So a
killed process loses at most the chunk it was writing, and a lost disk cache never leaves a hole behind bytes that were
acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from deltaserve import files
from deltaserve.errors import DataLossError, InvalidArgumentError, OffsetError, QuotaError

MAX_CHUNK_BYTES = 2 << 20
SYNC_BYTES = 64 << 20  # most bytes between two syncs, and so most bytes that recovery reads again
_ENTRY = struct.Struct(
    "<QII"
)  # end offset with the synced flag in its top bit, CRC of the chunk, CRC of these 12 bytes
_SYNCED = 1 << 63


class ReceivedFile:
    """A file that arrives in order. Not thread-safe: its upload serialises the calls. Every method blocks on the disk.

    Attributes:
        size: declared bytes.
        received: bytes that are here.
    """

    def __init__(self, path: Path, journal: Path, size: int) -> None:
        """Opens or creates the file, and recovers what a former process left."""
        self.path = path
        self.size = size
        self._journal = journal
        self.received = self._synced = self._entries = 0
        files.make_folder(path.parent)
        files.make_folder(journal.parent)
        path.touch()
        self._recover()

    @property
    def complete(self) -> bool:
        """Whether all declared bytes are here."""
        return self.received == self.size

    def append(self, offset: int, data: bytes, crc32c: int) -> None:
        """Writes a chunk, or what of it is not here yet.

        Raises:
            InvalidArgumentError: the chunk is above 2 MiB or goes past the declared size.
            DataLossError: `data` does not match `crc32c`.
            OffsetError: the chunk begins after what is here; `expected_offset` says where to go on.
            QuotaError: the disk is full; what was here before stays.
        """
        self._check(offset, data, crc32c)
        fresh = data[self.received - offset :]
        if not fresh:
            return
        with _disk_errors(self.path.name), self.path.open("rb+") as file:
            file.seek(self.received)
            file.write(fresh)
        self._note(self.received + len(fresh), crc32c if len(fresh) == len(data) else google_crc32c.value(fresh))
        self.received += len(fresh)
        if self.received - self._synced >= SYNC_BYTES or self.complete:
            self.sync()

    def sync(self) -> None:
        """Makes durable what is here; returns at once when it is."""
        if self._synced == self.received:
            return
        with _disk_errors(self.path.name):
            files.sync_file(self.path)
            self._note(self.received | _SYNCED, 0)
            files.sync_file(self._journal)
            files.sync_folder(self._journal.parent)
            files.sync_folder(self.path.parent)
        self._synced = self.received

    def drop(self) -> None:
        """Forgets all bytes: they turned out to be wrong."""
        self._reset(0)

    def _check(self, offset: int, data: bytes, crc32c: int) -> None:
        name, end = self.path.name, offset + len(data)
        if len(data) > MAX_CHUNK_BYTES:
            raise InvalidArgumentError(
                f"chunk of {name!r} has {len(data)} bytes; expected at most {MAX_CHUNK_BYTES}", field="data"
            )
        if end > self.size:
            raise InvalidArgumentError(
                f"chunk of {name!r} ends at byte {end}, but the file was declared with {self.size} bytes",
                field="offset",
            )
        found = google_crc32c.value(data)
        if found != crc32c:
            raise DataLossError(
                f"chunk of {name!r} at offset {offset} has CRC-32C {found:08x}, expected {crc32c:08x}; send it again",
                path=name,
                offset=offset,
                expected_offset=self.received,
            )
        if offset > self.received:
            raise OffsetError(
                f"chunk of {name!r} begins at offset {offset}, expected {self.received}: send from there",
                path=name,
                offset=offset,
                expected_offset=self.received,
            )

    def _note(self, end: int, crc32c: int) -> None:
        head = struct.pack("<QI", end, crc32c)
        with _disk_errors(self.path.name), self._journal.open("rb+") as file:
            file.seek(self._entries * _ENTRY.size)  # over what a failed write may have left
            file.write(head + struct.pack("<I", google_crc32c.value(head)))
        self._entries += 1

    def _recover(self) -> None:
        entries = list(_entries(self._journal.read_bytes())) if self._journal.exists() else []
        found = self.path.stat().st_size
        synced = [number for number, (end, _) in enumerate(entries) if end & _SYNCED]
        trusted = min(entries[synced[-1]][0] & ~_SYNCED, found) if synced else 0
        with self.path.open("rb") as file:
            for end, crc32c in entries[synced[-1] + 1 if synced else 0 :]:
                if not trusted < end <= found or end - trusted > MAX_CHUNK_BYTES:
                    break
                file.seek(trusted)
                if google_crc32c.value(file.read(end - trusted)) != crc32c:
                    break
                trusted = end
        self._reset(min(trusted, self.size))

    def _reset(self, received: int) -> None:
        """Cuts the data to `received` bytes and makes the journal say just that, durably."""
        with _disk_errors(self.path.name):
            os.truncate(self.path, received)
            files.sync_file(self.path)
            temp = files.temp_beside(self._journal)
            head = struct.pack("<QI", received | _SYNCED, 0)
            temp.write_bytes(head + struct.pack("<I", google_crc32c.value(head)))
            files.publish(temp, self._journal)
        self.received = self._synced = received
        self._entries = 1


def _entries(journal: bytes) -> Iterator[tuple[int, int]]:
    """Yields (end with synced flag, CRC) of whole entries, up to the first one that was torn by a crash."""
    whole = len(journal) - len(journal) % _ENTRY.size
    for start in range(0, whole, _ENTRY.size):
        end, crc32c, check = _ENTRY.unpack_from(journal, start)
        if google_crc32c.value(journal[start : start + 12]) != check:
            return
        yield end, crc32c


@contextlib.contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise QuotaError(
            f"the compressor's disk is full while writing {name!r}; free space there, then go on with the upload",
            subject="disk",
            retry_seconds=30,
        ) from error
