"""What the store publishes: models, revisions, aliases and pins, read with a short-lived cache.

Used by the router (to resolve names), the worker (manifests) and the compressor (settings). Free of torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from dataclasses import dataclass, field
from typing import Any

from deltaserve.delta.manifest import MANIFEST_FILE, Manifest, parse_manifest
from deltaserve.errors import InvalidArgumentError, NotFoundError
from deltaserve.json_bounds import check_values
from deltaserve.names import RevisionName, parse_model, parse_revision
from deltaserve.store import Store, StoredObject, delta_key, setting_prefix

ALIAS, PIN = "aliases", "pins"  # kinds of settings

_RECORD = re.compile(r"settings/[^/]+/[^/]+/[0-9]{1,9}\.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A published model: its revisions (decimal strings in numeric order, at least one) and what points at it."""

    name: str
    revisions: tuple[str, ...]
    manifest: Manifest  # of the newest revision
    aliases: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def latest(self) -> RevisionName:
        """The newest revision."""
        return RevisionName(self.name, self.revisions[-1])


@dataclass(slots=True)
class _View:
    """One reading of the store."""

    revisions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    pins: frozenset[str] = frozenset()


class Catalog:
    """A cached view of the store, at most `ttl` seconds old when a name resolves, fresh when one does not."""

    def __init__(self, store: Store, ttl: float = 2.0) -> None:
        self._store = store
        self._ttl = ttl
        self._view = _View()
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()
        self._manifests: dict[RevisionName, Manifest] = {}

    async def refresh(self) -> None:
        """Reads the store's listing now; callers at the same time share one reading."""
        asked_at = time.monotonic()
        async with self._lock:
            if self._read_at >= asked_at:
                return
            started = time.monotonic()
            self._view = await self._read()
            self._read_at = started
            known = {RevisionName(model, r) for model, rs in self._view.revisions.items() for r in rs}
            self._manifests = {name: m for name, m in self._manifests.items() if name in known}

    async def models(self) -> list[ModelRecord]:
        """Returns all published models by name, at most `ttl` seconds old."""
        await self._refresh_if_old()
        view, records = self._view, []
        for model, revisions in sorted(view.revisions.items()):
            aliases = tuple(sorted(a for a, target in view.aliases.items() if target.partition("@")[0] == model))
            try:
                manifest = await self.manifest(RevisionName(model, revisions[-1]))
            except NotFoundError:
                continue  # deleted since the listing
            except InvalidArgumentError as error:  # one bad manifest must not hide all other models
                log.warning("model %s is left out: %s", model, error)
                continue
            records.append(ModelRecord(model, revisions, manifest, aliases, model in view.pins))
        return records

    async def resolve(self, text: str) -> RevisionName:
        """Returns the revision that `<model>`, `<model>@<revision>` or an alias stands for.

        Raises:
            InvalidArgumentError: not a well-formed name.
            NotFoundError: nothing of that name is published.
        """
        model, revision = parse_model(text)
        await self._refresh_if_old()
        found = self._lookup(model, revision)
        if found is None:
            await self.refresh()
            found = self._lookup(model, revision)
        if found is None:
            known = sorted(self._view.revisions)
            listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise NotFoundError(f"model {text!r} is not published; published are: {listed or 'none'}",
                                kind="model", name=text)  # fmt: skip
        return found

    async def manifest(self, name: RevisionName) -> Manifest:
        """Returns a revision's manifest. Raises NotFoundError, FormatError."""
        if name not in self._manifests:
            try:
                data = await self._store.get(delta_key(name, MANIFEST_FILE))
            except NotFoundError as error:
                raise NotFoundError(f"revision {name} is not published", kind="revision", name=str(name)) from error
            self._manifests[name] = parse_manifest(data)
        return self._manifests[name]

    def _lookup(self, model: str, revision: str | None) -> RevisionName | None:
        target = self._view.aliases.get(model)
        if target is not None and model not in self._view.revisions:
            model, aliased = parse_model(target)
            revision = revision or aliased
        revisions = self._view.revisions.get(model, ())
        if revision is None:
            return RevisionName(model, revisions[-1]) if revisions else None
        return RevisionName(model, revision) if revision in revisions else None

    async def _refresh_if_old(self) -> None:
        if time.monotonic() - self._read_at > self._ttl:
            await self.refresh()

    async def _read(self) -> _View:
        revisions: dict[str, list[str]] = {}
        for found in await self._store.list("deltas/"):  # one listing, however many models there are
            parts = found.key.split("/")
            if len(parts) == 4 and parts[3] == MANIFEST_FILE and _is_revision(parts[1], parts[2]):
                revisions.setdefault(parts[1], []).append(parts[2])
        aliases = {name: value["target"] for name, value in (await _settings(self._store, ALIAS)).items()}
        pins = frozenset(name for name, value in (await _settings(self._store, PIN)).items() if value["pinned"])
        in_order = {model: tuple(sorted(numbers, key=int)) for model, numbers in revisions.items()}
        return _View(in_order, {a: t for a, t in aliases.items() if t}, pins)


async def published_revisions(store: Store, model: str) -> list[str]:
    """Returns the revisions of a model whose manifest exists, in numeric order."""
    suffix = f"/{MANIFEST_FILE}"
    keys = [o.key for o in await store.list(f"deltas/{model}/") if o.key.endswith(suffix)]
    numbers = [key.removesuffix(suffix).rsplit("/", 1)[-1] for key in keys]
    return sorted((n for n in numbers if n.isdecimal()), key=int)


async def read_setting(store: Store, kind: str, name: str) -> dict[str, Any] | None:
    """Returns the present value of a setting, or None if it was never written, or cannot be read any more."""
    records = await _records(store, setting_prefix(kind, name))
    return await _value(store, kind, records[-1].key) if records else None


async def write_setting(store: Store, kind: str, name: str, value: dict[str, Any]) -> None:
    """Appends a new value of a setting; of two writers at once both succeed and the later number wins."""
    data = json.dumps(value).encode()
    records = await _records(store, setting_prefix(kind, name))
    number = int(records[-1].key.rsplit("/", 1)[-1].removesuffix(".json")) + 1 if records else 0
    while not await store.put_new(f"{setting_prefix(kind, name)}{number:06d}.json", data):
        number += 1


async def _settings(store: Store, kind: str) -> dict[str, dict[str, Any]]:
    newest: dict[str, str] = {}
    for found in await _records(store, f"settings/{kind}/"):  # by key, so the highest number of a name comes last
        newest[found.key.split("/")[2]] = found.key
    values = {name: await _value(store, kind, key) for name, key in newest.items()}
    return {name: value for name, value in values.items() if value is not None}


async def _records(store: Store, prefix: str) -> list[StoredObject]:
    """Returns the records below a prefix by key; whatever else lies there is none."""
    return [found for found in await store.list(prefix) if _RECORD.fullmatch(found.key)]


async def _value(store: Store, kind: str, key: str) -> dict[str, Any] | None:
    """Returns a record's value; None, and a warning, if it is none: it must not stop all other names from resolving."""
    try:
        data = await store.get(key)
        check_values(data)
        value = json.loads(data)
        if not isinstance(value["target" if kind == ALIAS else "pinned"], str if kind == ALIAS else bool):
            raise TypeError("ill-typed")  # noqa: TRY301 - as what Python raises for the others
        if kind == ALIAS and value["target"]:
            parse_model(value["target"])
    except (ValueError, TypeError, LookupError, RecursionError, InvalidArgumentError) as error:
        log.warning("setting %s is left out: it is no value of %s: %s", key, kind, error)
        return None
    found: dict[str, Any] = value
    return found


def _is_revision(model: str, number: str) -> bool:
    """Whether both are names that requests can spell."""
    try:
        parse_revision(f"{model}@{number}")
    except InvalidArgumentError:
        return False
    return True
