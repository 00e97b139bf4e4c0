import msgspec
import pytest

from deltaserve.catalog import ALIAS, PIN, Catalog, read_setting, write_setting
from deltaserve.delta.manifest import BaseRef, FileEntry, Manifest, Sizes, dump_manifest
from deltaserve.errors import FormatError, InvalidArgumentError, NotFoundError
from deltaserve.names import RevisionName
from deltaserve.store import Store, delta_key

MANIFEST = Manifest(
    format="deltaserve-delta",
    version=1,
    model="m",
    revision="1",
    created="2026-11-24T00:00:00Z",
    base=BaseRef(fingerprint="0" * 64, architecture="LlamaForCausalLM"),
    config={},
    tensors=[],
    files=[FileEntry(path="delta.safetensors", size=8, sha256="0" * 64)],
    sizes=Sizes(parameters=0, checkpoint_bytes=0, delta_bytes=8, by_class={}),
)


async def publish(store: Store, model: str, revision: str) -> None:
    manifest = msgspec.structs.replace(MANIFEST, model=model, revision=revision)
    await store.put_new(delta_key(RevisionName(model, revision), "delta.safetensors"), b"")
    await store.put_new(delta_key(RevisionName(model, revision), "manifest.json"), dump_manifest(manifest))


@pytest.fixture
async def store() -> Store:
    store = Store.open("memory://")
    for revision in ("1", "2", "10"):
        await publish(store, "a", revision)
    await publish(store, "b", "1")
    await store.put_new("deltas/torn/1/delta.safetensors", b"no manifest: not published")
    return store


async def test_models_have_their_revisions_in_numeric_order(store: Store) -> None:
    models = await Catalog(store).models()
    assert [(m.name, m.revisions) for m in models] == [("a", ("1", "2", "10")), ("b", ("1",))]
    assert models[0].latest == RevisionName("a", "10")
    assert models[0].manifest.revision == "10"


async def test_names_resolve(store: Store) -> None:
    catalog = Catalog(store)
    assert await catalog.resolve("a") == RevisionName("a", "10")
    assert await catalog.resolve("a@2") == RevisionName("a", "2")
    for unknown in ("c", "a@3", "torn"):
        with pytest.raises(NotFoundError, match="published are: a, b") as refused:
            await catalog.resolve(unknown)
        assert (refused.value.kind, refused.value.name) == ("model", unknown)
    with pytest.raises(InvalidArgumentError):
        await catalog.resolve("../a")


async def test_a_name_published_meanwhile_resolves_at_once(store: Store) -> None:
    catalog = Catalog(store, ttl=3600)
    await catalog.refresh()
    await publish(store, "c", "1")
    assert await catalog.resolve("c") == RevisionName("c", "1")


async def test_aliases_and_pins(store: Store) -> None:
    await write_setting(store, ALIAS, "prod", {"target": "a@2"})
    await write_setting(store, ALIAS, "canary", {"target": "a"})
    await write_setting(store, ALIAS, "b", {"target": "a"})  # a model's own name wins
    await write_setting(store, PIN, "a", {"pinned": True})
    catalog = Catalog(store, ttl=0)
    assert await catalog.resolve("prod") == RevisionName("a", "2")
    assert await catalog.resolve("canary") == RevisionName("a", "10")
    assert await catalog.resolve("b") == RevisionName("b", "1")
    record = (await catalog.models())[0]
    assert (record.aliases, record.pinned) == (("b", "canary", "prod"), True)
    await write_setting(store, ALIAS, "prod", {"target": ""})
    with pytest.raises(NotFoundError):
        await catalog.resolve("prod")


async def test_settings_keep_the_newest_value(store: Store) -> None:
    assert await read_setting(store, PIN, "x") is None
    for pinned in (True, False, True):
        await write_setting(store, PIN, "x", {"pinned": pinned})
        assert await read_setting(store, PIN, "x") == {"pinned": pinned}


async def test_a_deleted_revision_is_gone(store: Store) -> None:
    catalog = Catalog(store, ttl=0)
    await catalog.manifest(RevisionName("b", "1"))
    await store.delete("deltas/b/1/manifest.json")
    await catalog.refresh()
    with pytest.raises(NotFoundError):
        await catalog.manifest(RevisionName("b", "1"))


async def test_a_malformed_manifest_is_named(store: Store) -> None:
    await store.put_new("deltas/bad/1/manifest.json", b'{"format": "deltaserve-delta", "version": 2}')
    with pytest.raises(FormatError, match="version 2; expected 'deltaserve-delta' version 1"):
        await Catalog(store).manifest(RevisionName("bad", "1"))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"target": 1}', b'{"target": "../x"}', b"[" * 100_000])
async def test_a_setting_that_cannot_be_read_is_left_out_and_can_be_written_anew(store: Store, data: bytes) -> None:
    for kind in (ALIAS, PIN):
        await store.put_new(f"settings/{kind}/bad/000000.json", data)
        await store.put_new(f"settings/{kind}/b/notes.txt", data)
    catalog = Catalog(store, ttl=0)
    assert await catalog.resolve("a") == RevisionName("a", "10")
    assert await read_setting(store, ALIAS, "bad") is None
    await write_setting(store, ALIAS, "bad", {"target": "a@2"})
    assert await catalog.resolve("bad") == RevisionName("a", "2")


async def test_a_bad_manifest_or_name_hides_no_other_model(store: Store) -> None:
    await store.put_new("deltas/c/1/manifest.json", b"{")
    for key in ("deltas/C/1/manifest.json", "deltas/c/01/manifest.json", "deltas/c/٣/manifest.json"):
        await store.put_new(key, dump_manifest(MANIFEST))
    catalog = Catalog(store)
    assert [model.name for model in await catalog.models()] == ["a", "b"]
    with pytest.raises(FormatError):
        await catalog.manifest(await catalog.resolve("c"))
