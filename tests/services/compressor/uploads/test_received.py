"""Appending, recovery after kills and lost disk caches."""

import random
from pathlib import Path

import google_crc32c
import pytest

from deltaserve.errors import DataLossError, InvalidArgumentError, OffsetError
from services.compressor.uploads.received import MAX_CHUNK_BYTES, ReceivedFile

DATA = random.Random(7).randbytes(100_000)


def opened(folder: Path, size: int = len(DATA)) -> ReceivedFile:
    return ReceivedFile(folder / "files" / "f", folder / "journals" / "f", size)


def send(file: ReceivedFile, begin: int, end: int) -> None:
    file.append(begin, DATA[begin:end], google_crc32c.value(DATA[begin:end]))


def test_chunks_in_order_repeated_and_overlapping(tmp_path: Path) -> None:
    file = opened(tmp_path)
    send(file, 0, 1000)
    send(file, 0, 1000)
    send(file, 500, 3000)
    send(file, 100, 200)
    assert file.received == 3000
    send(file, 3000, len(DATA))
    assert file.complete
    assert file.path.read_bytes() == DATA
    assert opened(tmp_path).received == len(DATA)


def test_a_gap_names_the_expected_offset(tmp_path: Path) -> None:
    file = opened(tmp_path)
    send(file, 0, 1000)
    with pytest.raises(OffsetError, match="offset 1001, expected 1000") as refused:
        send(file, 1001, 2000)
    assert refused.value.metadata["expected_offset"] == "1000"
    assert file.received == 1000


def test_bad_chunks_change_nothing(tmp_path: Path) -> None:
    file = opened(tmp_path, 3 << 20)
    send(file, 0, 1000)
    with pytest.raises(DataLossError, match="CRC-32C"):
        file.append(1000, DATA[1000:2000], 1)
    with pytest.raises(InvalidArgumentError, match="at most"):
        file.append(1000, b"x" * (MAX_CHUNK_BYTES + 1), 0)
    with pytest.raises(InvalidArgumentError, match="declared with 3145728 bytes"):
        file.append(3 << 20, b"x", google_crc32c.value(b"x"))
    assert file.received == 1000
    assert opened(tmp_path, 3 << 20).received == 1000


def test_a_kill_at_any_byte_loses_at_most_the_chunk_being_written(tmp_path: Path) -> None:
    """Every prefix of data and journal that a kill can leave recovers to the end of a whole chunk."""
    whole = opened(tmp_path / "whole")
    for begin in range(0, 50_000, 10_000):
        send(whole, begin, begin + 10_000)
        if begin == 10_000:
            whole.sync()
    data, journal = whole.path.read_bytes(), (tmp_path / "whole/journals/f").read_bytes()
    for cut in range(0, 50_001, 2500):
        folder = tmp_path / str(cut)
        for name, content in (("files", data[:cut]), ("journals", journal)):
            (folder / name).mkdir(parents=True)
            (folder / name / "f").write_bytes(content)
        # within what was synced every byte counts; after it, whole chunks do
        assert opened(folder).received == (cut if cut <= 20_000 else cut // 10_000 * 10_000)
    for cut in range(len(journal)):
        folder = tmp_path / f"journal{cut}"
        for name, content in (("files", data), ("journals", journal[:cut])):
            (folder / name).mkdir(parents=True)
            (folder / name / "f").write_bytes(content)
        file = opened(folder)
        assert file.received % 10_000 == 0
        assert file.path.read_bytes() == DATA[: file.received]


def test_bytes_lost_by_the_disk_cache_are_not_trusted(tmp_path: Path) -> None:
    file = opened(tmp_path)
    send(file, 0, 10_000)
    file.sync()
    send(file, 10_000, 20_000)
    send(file, 20_000, 30_000)
    content = bytearray(file.path.read_bytes())
    content[20_000:30_000] = bytes(10_000)  # a file system that wrote the size but not the data
    file.path.write_bytes(content)
    again = opened(tmp_path)
    assert again.received == 20_000
    send(again, 20_000, len(DATA))
    assert again.path.read_bytes() == DATA


def test_dropped_files_start_again(tmp_path: Path) -> None:
    file = opened(tmp_path)
    send(file, 0, len(DATA))
    file.drop()
    assert opened(tmp_path).received == 0


def test_an_empty_file_is_complete(tmp_path: Path) -> None:
    assert opened(tmp_path, 0).complete
