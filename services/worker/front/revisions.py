"""What a worker knows of the base and of revisions before any tensor: manifest, tokenizer, defaults, bounds."""

from __future__ import annotations

import asyncio
import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaserve.delta.manifest import MANIFEST_FILE, FileEntry, Manifest, parse_manifest
from deltaserve.errors import BaseMismatchError, DataLossError, FormatError, NotFoundError, StoreError
from deltaserve.names import RevisionName, parse_revision
from deltaserve.store import Store, base_key, delta_key
from services.worker.front import tokenizer as text
from services.worker.front.defaults import GenerationDefaults, generation_defaults
from services.worker.front.disk import DiskCache
from services.worker.front.tokenizer import Encoding, PromptTokenizer

GENERATION_CONFIG = "generation_config.json"
CONFIG = "config.json"
_TEXT_FILES = (*text.FILES, GENERATION_CONFIG)
_KEPT = 1024  # revisions known at once
_MAX_TEXT_BYTES = 64 << 20  # of a tokenizer or another side file, which are read whole; real ones have up to 34 MB


@dataclass(frozen=True, slots=True)
class PublishedDelta:
    """What the store says about a delta.

    Attributes:
        name: the revision.
        manifest: its manifest.
        raw: the manifest's bytes as stored.
    """

    name: RevisionName
    manifest: Manifest
    raw: bytes


@dataclass(frozen=True, slots=True)
class Revision:
    """A model that requests may name.

    Attributes:
        delta: None for the base.
        tokenizer: of the model.
        defaults: of its generation_config.json.
        vocab_size: rows of its embedding.
        max_positions: context that its config allows, in tokens.
    """

    delta: PublishedDelta | None
    tokenizer: PromptTokenizer
    defaults: GenerationDefaults
    vocab_size: int
    max_positions: int


class Revisions:
    """Loads revisions from the store (or the disk cache when the store is down) once, and keeps the recent ones."""

    def __init__(self, store: Store, disk: DiskCache, base_folder: Path) -> None:
        """Serves fine-tunes of `base_folder`, once `serve` has told its fingerprint."""
        self._store = store
        self._disk = disk
        self._base_folder = base_folder
        self._fingerprint = ""
        self._loading: OrderedDict[str, asyncio.Task[Revision]] = OrderedDict()
        self._encodings: weakref.WeakValueDictionary[str, Encoding] = weakref.WeakValueDictionary()

    async def get(self, revision: str) -> Revision:
        """Returns `<model>@<revision>`, or the base for an empty string.

        Raises:
            InvalidArgumentError: not a well-formed name.
            NotFoundError: not published.
            BaseMismatchError: made for another base.
            FormatError, DataLossError, UnsupportedModelError: its manifest or tokenizer files are bad.
            StoreError: the store failed.
        """
        task = self._loading.get(revision)
        if task is None:
            task = asyncio.create_task(self._load(revision))
            self._loading[revision] = task
            task.add_done_callback(lambda done: self._keep(revision, done))
        else:
            self._loading.move_to_end(revision)
        return await asyncio.shield(task)  # others may wait for it too

    def serve(self, fingerprint: str) -> None:
        """Takes the base's fingerprint; what was known of fine-tunes of another base is forgotten."""
        if fingerprint != self._fingerprint:
            self._loading.clear()
            self._fingerprint = fingerprint

    def forget(self, revision: str) -> None:
        """Reads the revision from the store again when it is asked for next."""
        self._loading.pop(revision, None)

    def _keep(self, revision: str, task: asyncio.Task[Revision]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._loading.get(revision) is task:
            del self._loading[revision]  # the next request tries again
        while len(self._loading) > _KEPT:
            self._loading.popitem(last=False)

    async def _load(self, revision: str) -> Revision:
        if not revision:
            found = await asyncio.to_thread(self._base_files, (*_TEXT_FILES, CONFIG))
            config = await asyncio.to_thread(text.parse_json, found, CONFIG)
            return await asyncio.to_thread(self._build, None, found, config)
        name = parse_revision(revision)
        raw = await self._manifest(name)
        manifest = await asyncio.to_thread(parse_manifest, raw)
        self._check_base(name, manifest)
        found = await self._files(name, manifest)
        return await asyncio.to_thread(self._build, PublishedDelta(name, manifest, raw), found, manifest.config)

    async def _manifest(self, name: RevisionName) -> bytes:
        try:
            return await self._store.get(delta_key(name, MANIFEST_FILE))
        except NotFoundError as error:
            raise NotFoundError(f"revision {name} is not published", kind="revision", name=str(name)) from error
        except StoreError:
            cached = self._disk.manifest(name)
            if cached is None:
                raise
            return cached

    def _check_base(self, name: RevisionName, manifest: Manifest) -> None:
        found = manifest.base.fingerprint
        if found != self._fingerprint:
            raise BaseMismatchError(
                f"{name} was made for the base with fingerprint {found}; this worker serves {self._fingerprint}",
                found=found,
                expected=self._fingerprint,
            )

    async def _files(self, name: RevisionName, manifest: Manifest) -> dict[str, bytes]:
        entries = {entry.path: entry for entry in manifest.files if entry.path in _TEXT_FILES}
        found = {}
        if text.TOKENIZER not in entries:  # uploaded without a tokenizer: it has the base's
            found = await asyncio.to_thread(self._base_files, text.FILES)
        for path, entry in entries.items():
            found[path] = await self._file(name, entry)
        return found

    async def _file(self, name: RevisionName, entry: FileEntry) -> bytes:
        if entry.size > _MAX_TEXT_BYTES:
            raise FormatError(
                f"{name} has a {entry.path} of {entry.size} bytes; expected at most {_MAX_TEXT_BYTES}", field=entry.path
            )
        folder = self._base_folder if entry.source == "base" else self._disk.folder(name)
        data = await asyncio.to_thread(_read_if, folder / entry.path)
        if data is not None and _matches(data, entry):
            return data
        of_base = entry.source == "base"
        key = base_key(self._fingerprint, entry.path) if of_base else delta_key(name, entry.path)
        data = await self._store.get(key)
        if not _matches(data, entry):
            raise DataLossError(
                f"object {key!r} has {len(data)} bytes with sha256 {hashlib.sha256(data).hexdigest()}; the manifest of "
                f"{name} says {entry.size} bytes with sha256 {entry.sha256}; publish the revision again",
                object=key,
            )
        return data

    def _base_files(self, names: tuple[str, ...]) -> dict[str, bytes]:
        found = {name: _read_if(self._base_folder / name) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def _build(self, delta: PublishedDelta | None, found: Mapping[str, bytes], config: Mapping[str, Any]) -> Revision:
        owner = str(delta.name) if delta else "the base"
        tokenizer = PromptTokenizer(self._encoding(text.require_tokenizer(found, owner)), found)
        generation = text.parse_json(found, GENERATION_CONFIG)
        defaults = generation_defaults(generation, config, tokenizer.eos_token_id, owner)
        vocab_size = _positive(config, "vocab_size", owner)
        positions = _positive(config, "max_position_embeddings", owner)
        return Revision(delta, tokenizer, defaults, vocab_size, positions)

    def _encoding(self, data: bytes) -> Encoding:
        key = hashlib.sha256(data).hexdigest()
        encoding = self._encodings.get(key)
        if encoding is None:
            encoding = Encoding(data)
            self._encodings[key] = encoding
        return encoding


def _positive(config: Mapping[str, Any], key: str, owner: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise FormatError(f"{CONFIG} of {owner} has {key} {value!r}; expected a positive whole number", field=key)
    return value


def _read_if(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _matches(data: bytes, entry: FileEntry) -> bool:
    return len(data) == entry.size and hashlib.sha256(data).hexdigest() == entry.sha256
