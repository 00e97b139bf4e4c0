"""Revisions: manifest, tokenizer and defaults, from the store, the disk cache and the base's folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from deltaserve.delta.manifest import BaseRef
from deltaserve.errors import BaseMismatchError, DataLossError, FormatError, NotFoundError, StoreError
from deltaserve.names import parse_revision
from deltaserve.store import Store, base_key, delta_key
from services.worker.front.disk import DiskCache
from services.worker.front.revisions import Revisions
from services.worker.front.tokenizer import Encoding


@pytest.fixture
def tokenizer_json(gpt: Encoding) -> bytes:
    return gpt._tokenizer.to_str().encode()


@pytest.fixture
def base(tmp_path: Path, tokenizer_json: bytes) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 300, "max_position_embeddings": 128}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "temperature": 0.5}))
    return folder


@pytest.fixture
def store() -> Store:
    return Store.open("memory://")


@pytest.fixture
def revisions(store: Store, base: Path, tmp_path: Path, fingerprint: str) -> Revisions:
    revisions = Revisions(store, DiskCache(tmp_path / "cache", 1 << 20, store), base)
    revisions.serve(fingerprint)
    return revisions


async def test_the_base(revisions: Revisions) -> None:
    found = await revisions.get("")
    assert found.delta is None
    assert (found.vocab_size, found.max_positions) == (300, 128)
    assert (found.defaults.eos, dict(found.defaults.sampling)) == ((0,), {"temperature": 0.5})


async def test_a_revision_with_files_of_its_own(
    revisions: Revisions, store: Store, publish: Any, tokenizer_json: bytes
) -> None:
    files = {"tokenizer.json": tokenizer_json, "generation_config.json": b'{"eos_token_id": [1, 2]}'}
    manifest = await publish(store, "m@1", files)
    found = await revisions.get("m@1")
    assert found.delta is not None
    assert found.delta.manifest == manifest
    assert found.defaults.eos == (1, 2)
    assert found.vocab_size == 320
    assert await revisions.get("m@1") is found
    assert found.tokenizer.encoding is (await revisions.get("")).tokenizer.encoding  # equal files, one tokenizer


async def test_files_of_the_base_are_not_fetched(
    revisions: Revisions, store: Store, publish: Any, base: Path, tokenizer_json: bytes
) -> None:
    await publish(store, "m@1", {}, base={"tokenizer.json": tokenizer_json})
    assert (await revisions.get("m@1")).tokenizer.encode("the", False)


async def test_files_of_the_base_come_from_the_store_when_the_folder_has_others(
    revisions: Revisions, store: Store, publish: Any, base: Path, tokenizer_json: bytes, fingerprint: str
) -> None:
    await publish(store, "m@1", {}, base={"tokenizer.json": tokenizer_json})
    (base / "tokenizer.json").write_bytes(b"changed")
    with pytest.raises(NotFoundError):
        await revisions.get("m@1")
    await store.put_new(base_key(fingerprint, "tokenizer.json"), tokenizer_json)
    assert (await revisions.get("m@1")).tokenizer.encode("the", False)


async def test_without_a_tokenizer_it_has_the_bases(revisions: Revisions, store: Store, publish: Any) -> None:
    await publish(store, "m@1", {})
    assert (await revisions.get("m@1")).tokenizer.encode("the", False)


async def test_refusals(revisions: Revisions, store: Store, publish: Any) -> None:
    with pytest.raises(NotFoundError) as missing:
        await revisions.get("m@9")
    assert (missing.value.kind, missing.value.name) == ("revision", "m@9")
    other = BaseRef(fingerprint="0" * 64, architecture="LlamaForCausalLM")
    await publish(store, "m@2", {}, base_ref=other)
    with pytest.raises(BaseMismatchError, match="0000"):
        await revisions.get("m@2")
    await store.put_new(delta_key(parse_revision("m@3"), "manifest.json"), b"{}")
    with pytest.raises(FormatError):
        await revisions.get("m@3")
    await publish(store, "m@4", {"tokenizer.json": b"no"})
    with pytest.raises(FormatError):
        await revisions.get("m@4")
    await publish(store, "m@5", {}, config={"vocab_size": "many"})
    with pytest.raises(FormatError, match="vocab_size 'many'"):
        await revisions.get("m@5")


async def test_a_corrupt_file_is_found_and_its_repair_too(
    revisions: Revisions, store: Store, publish: Any, tokenizer_json: bytes
) -> None:
    await publish(store, "m@1", {"tokenizer.json": tokenizer_json})
    key = delta_key(parse_revision("m@1"), "tokenizer.json")
    await store.delete(key)
    await store.put_new(key, tokenizer_json[:-1] + b" ")
    with pytest.raises(DataLossError, match=r"tokenizer\.json"):
        await revisions.get("m@1")
    await store.delete(key)
    await store.put_new(key, tokenizer_json)
    await revisions.get("m@1")


async def test_the_disk_cache_serves_when_the_store_is_down(
    store: Store, base: Path, tmp_path: Path, fingerprint: str, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskCache(tmp_path / "cache", 1 << 20, store)
    await publish(store, "m@1", {"generation_config.json": b'{"eos_token_id": 7}'})
    earlier, later = Revisions(store, disk, base), Revisions(store, disk, base)
    earlier.serve(fingerprint)
    later.serve(fingerprint)
    delta = (await earlier.get("m@1")).delta
    assert delta is not None
    await disk.fetch(delta.name, delta.manifest, delta.raw)

    async def down(key: str) -> bytes:
        raise StoreError("the store failed: no route")

    monkeypatch.setattr(store, "get", down)
    assert (await later.get("m@1")).defaults.eos == (7,)
    with pytest.raises(StoreError):
        await later.get("m@2")
