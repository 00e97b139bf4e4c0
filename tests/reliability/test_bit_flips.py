"""Flipped bits never reach a token: not on the way into the cache, not on the disk, not in the reader."""

import random
from pathlib import Path

import pytest

from benchmarks.reliability_cases.bit_flips import flip_payload
from benchmarks.reliability_cases.tiny import make_tiny
from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE, parse_manifest
from deltaserve.errors import DataLossError
from deltaserve.names import RevisionName
from deltaserve.store import Store, delta_key
from services.worker.front.disk import DiskCache

NAME = RevisionName("m", "1")


@pytest.mark.parametrize("codec", ["int2", "int4", "sign1"])
def test_no_flip_of_a_payload_is_read(tmp_path: Path, codec: str) -> None:
    packed = make_tiny(tmp_path, codec=codec).packed
    assert flip_payload(packed, random.Random(), 200).total() == 200


async def test_no_flip_in_the_store_reaches_the_cache(tmp_path: Path) -> None:
    packed = make_tiny(tmp_path / "tiny").packed
    raw = (packed / MANIFEST_FILE).read_bytes()
    payload = (packed / DELTA_FILE).read_bytes()
    manifest = parse_manifest(raw)
    store = Store.open(str(tmp_path / "store"))
    for entry in manifest.files:
        if entry.source == "delta":
            await store.put_file_new(delta_key(NAME, entry.path), packed / entry.path)
    cache = DiskCache(tmp_path / "cache", 1 << 30, store)
    stored = tmp_path / "store" / delta_key(NAME, DELTA_FILE)
    for _ in range(50):
        bit = random.randrange(8 * len(payload))
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        stored.write_bytes(bad)
        with pytest.raises(DataLossError):
            await cache.fetch(NAME, manifest, raw)
        assert cache.entries() == {}
    stored.write_bytes(payload)
    assert (await cache.fetch(NAME, manifest, raw) / DELTA_FILE).read_bytes() == payload
