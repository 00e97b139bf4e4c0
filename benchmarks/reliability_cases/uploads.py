"""Uploads whose connection is cut again and again: what has to be sent twice, and that no byte is wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.reliability_cases.proxy import fault_proxy
from benchmarks.reliability_cases.tiny import Tiny
from deltaserve.client import AsyncClient
from services.compressor.service import compressor
from services.compressor.settings import Settings
from services.compressor.uploads.received import ReceivedFile

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class CutUpload:
    """What an upload took.

    Attributes:
        cuts: times that its connection was cut.
        size: bytes of its files.
        received: bytes of all chunks that the compressor got, repeated ones included.
        sent: bytes that went over the wire, repeated ones, those that a cut lost, and framing included.
        most_again: the most bytes that the compressor got again after one cut.
    """

    cuts: int
    size: int
    received: int
    sent: int
    most_again: int


async def cut_upload(folder: Path, tiny: Tiny, rng: random.Random, cuts: int) -> CutUpload:
    """Uploads a fine-tune with a file of some MiB for each cut, through a proxy that cuts at random places.

    Raises:
        AssertionError: bytes on the compressor are not those that were sent.
    """
    extra = folder / "rows.jsonl"
    extra.write_bytes(rng.randbytes((2 * cuts + 2) << 20))
    settings = Settings(base=tiny.base, store=str(folder / "store"), listen="127.0.0.1:0", work=folder / "work",
                        threads=1, disk_reserve_bytes=0)  # fmt: skip
    got: list[int] = [0]
    places: dict[str, int] = {}
    again = 0
    real = ReceivedFile.append

    def append(file: ReceivedFile, offset: int, data: bytes, crc32c: int) -> None:
        nonlocal again
        got[0] += len(data)
        again = max(again, places.get(file.path.name, 0) - offset)
        real(file, offset, data, crc32c)
        places[file.path.name] = max(places.get(file.path.name, 0), offset + len(data))

    with mock.patch.object(ReceivedFile, "append", append):
        async with compressor(settings) as host, fault_proxy(f"127.0.0.1:{host.port}") as proxy:

            def next_cut() -> None:
                proxy.cut_at = proxy.sent + rng.randint(CHUNK + CHUNK // 2, 2 * CHUNK) if proxy.cuts < cuts else None

            proxy.on_cut = next_cut
            proxy.cut_at = rng.randint(1, CHUNK)
            async with AsyncClient(proxy.address, patience=60) as client:
                uri = await client.upload(tiny.tuned, extra=[extra])
    files = folder / "work" / "uploads" / uri.partition(":")[2] / "files"
    for path in (extra, *(tiny.tuned / name for name in ("model.safetensors", "config.json", "tokenizer.json"))):
        assert (files / path.name).read_bytes() == path.read_bytes(), f"{path.name} has other bytes"
    size = sum(path.stat().st_size for path in files.iterdir())
    return CutUpload(proxy.cuts - 1, size, got[0], proxy.sent, again)  # the last cut is the proxy's end
