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

from deltaserve.aliases import AliasVersion, check_routes, read_version, stored_version
from deltaserve.delta.manifest import MANIFEST_FILE, Manifest, parse_manifest
from deltaserve.errors import InvalidArgumentError, NotFoundError, PreconditionError, StoreError
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
    aliases: dict[str, AliasVersion] = field(default_factory=dict)
    pins: frozenset[str] = frozenset()


class Catalog:
    """A cached view of the store, at most `ttl` seconds old when a name resolves, fresh when one does not.

    A store that fails or is slow does not stop what is known: once a view is there, a reading gets `patience` seconds
    and goes on in the background; until it is done, names resolve by the old view at once.
    """

    def __init__(self, store: Store, ttl: float = 2.0, patience: float = 1.0) -> None:
        self._store = store
        self._ttl = ttl
        self._patience = patience
        self._behind = False  # the last reading failed or took too long
        self._reading: asyncio.Task[None] | None = None
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
            self._behind = False
            known = {RevisionName(model, r) for model, rs in self._view.revisions.items() for r in rs}
            self._manifests = {name: m for name, m in self._manifests.items() if name in known}

    async def models(self) -> list[ModelRecord]:
        """Returns all published models by name, at most `ttl` seconds old."""
        await self._refresh_if_old()
        view, records = self._view, []
        for model, revisions in sorted(view.revisions.items()):
            aliases = tuple(sorted(a for a, held in view.aliases.items() if _points_at(held, model)))
            try:
                manifest = await self.manifest(RevisionName(model, revisions[-1]))
            except NotFoundError:
                continue  # deleted since the listing
            except InvalidArgumentError as error:  # one bad manifest must not hide all other models
                log.warning("model %s is left out: %s", model, error)
                continue
            records.append(ModelRecord(model, revisions, manifest, aliases, model in view.pins))
        return records

    def alias(self, text: str) -> AliasVersion | None:
        """Returns what an alias pointed at when it was read last; None for no alias, or one that a model hides."""
        return None if text in self._view.revisions else self._view.aliases.get(text)

    async def aliases(self) -> dict[str, AliasVersion]:
        """Returns all aliases by name, at most `ttl` seconds old."""
        await self._refresh_if_old()
        return dict(sorted(self._view.aliases.items()))

    def published(self, text: str) -> RevisionName | None:
        """Returns the revision that `<model>` or `<model>@<revision>` stands for, as it was read last, or None."""
        return self._published(*parse_model(text))

    async def resolve(self, text: str) -> RevisionName:
        """Returns the revision that `<model>`, `<model>@<revision>` or an alias stands for: the alias's heaviest route.

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
        held = self._view.aliases.get(model)
        if held is not None and model not in self._view.revisions:
            if revision is not None:
                return self._published(parse_model(held.main)[0], revision)
            by_weight = sorted(held.routes, key=lambda route: -route.weight)
            return next(filter(None, (self._published(*parse_model(route.target)) for route in by_weight)), None)
        return self._published(model, revision)

    def _published(self, model: str, revision: str | None) -> RevisionName | None:
        revisions = self._view.revisions.get(model, ())
        if revision is None:
            return RevisionName(model, revisions[-1]) if revisions else None
        return RevisionName(model, revision) if revision in revisions else None

    async def _refresh_if_old(self) -> None:
        if time.monotonic() - self._read_at <= self._ttl:
            return
        if self._read_at == float("-inf"):
            await self.refresh()  # nothing is known yet
            return
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh_behind())
        if not self._behind:
            _, late = await asyncio.wait({self._reading}, timeout=self._patience)
            if late:
                self._behind = True

    async def _refresh_behind(self) -> None:
        try:
            await self.refresh()
        except StoreError as error:
            self._behind = True
            log.warning("names resolve by a view %.0f s old: %s", time.monotonic() - self._read_at, error)
        finally:
            self._reading = None

    async def _read(self) -> _View:
        revisions: dict[str, list[str]] = {}
        for found in await self._store.list("deltas/"):  # one listing, however many models there are
            parts = found.key.split("/")
            if len(parts) == 4 and parts[3] == MANIFEST_FILE and _is_revision(parts[1], parts[2]):
                revisions.setdefault(parts[1], []).append(parts[2])
        aliases = {name: read_version(n, value) for name, (n, value) in (await _settings(self._store, ALIAS)).items()}
        pins = frozenset(name for name, (_, value) in (await _settings(self._store, PIN)).items() if value["pinned"])
        in_order = {model: tuple(sorted(numbers, key=int)) for model, numbers in revisions.items()}
        return _View(in_order, {name: held for name, held in aliases.items() if held.routes}, pins)


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
    number = _number(records[-1].key) if records else 0  # of its record, counted from 0
    while not await store.put_new(f"{setting_prefix(kind, name)}{number:06d}.json", data):
        number += 1


async def read_alias(store: Store, name: str) -> list[AliasVersion]:
    """Returns all versions of an alias, oldest first; none if it was never set."""
    records = await _records(store, setting_prefix(ALIAS, name))
    values = await asyncio.gather(*(_value(store, ALIAS, record.key) for record in records))
    return [
        read_version(_number(record.key), value)
        for record, value in zip(records, values, strict=True)
        if value is not None
    ]


async def write_alias(store: Store, name: str, version: AliasVersion) -> None:
    """Makes `version` the next version of an alias; raises PreconditionError when another one has its number."""
    key = f"{setting_prefix(ALIAS, name)}{version.number - 1:06d}.json"
    if not await store.put_new(key, json.dumps(stored_version(version)).encode()):
        raise PreconditionError(
            f"alias {name!r} changed meanwhile: version {version.number} is taken; look at it and try again", alias=name
        )


async def _settings(store: Store, kind: str) -> dict[str, tuple[int, dict[str, Any]]]:
    """Returns the present value of all settings of a kind, by name, with its number."""
    newest: dict[str, str] = {}
    for found in await _records(store, f"settings/{kind}/"):  # by key, so the highest number of a name comes last
        newest[found.key.split("/")[2]] = found.key
    values = {name: (_number(key), await _value(store, kind, key)) for name, key in newest.items()}
    return {name: (number, value) for name, (number, value) in values.items() if value is not None}


async def _records(store: Store, prefix: str) -> list[StoredObject]:
    """Returns the records below a prefix by key; whatever else lies there is none."""
    return [found for found in await store.list(prefix) if _RECORD.fullmatch(found.key)]


async def _value(store: Store, kind: str, key: str) -> dict[str, Any] | None:
    """Returns a record's value; None, and a warning, if it is none: it must not stop all other names from resolving."""
    try:
        data = await store.get(key)
        check_values(data)
        value: dict[str, Any] = json.loads(data)
        _check_value(kind, value)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, InvalidArgumentError) as error:
        log.warning("setting %s is left out: it is no value of %s: %s", key, kind, error)
        return None
    return value


def _check_value(kind: str, value: dict[str, Any]) -> None:
    """Raises whatever a value that a stranger wrote runs into."""
    if kind == PIN:
        if not isinstance(value["pinned"], bool):
            raise TypeError("pinned is no boolean")
        return
    version = read_version(1, value)
    check_routes(version.routes, version.shadow)
    if not isinstance(value.get("time", ""), str) or not isinstance(value.get("restores", 0), int):
        raise TypeError("time is no string or restores no number")


def _number(key: str) -> int:
    """Returns the number of a setting's record, from 1."""
    return int(key.rsplit("/", 1)[-1].removesuffix(".json")) + 1


def _points_at(held: AliasVersion, model: str) -> bool:
    return any(target.partition("@")[0] == model for target in held.targets)


def _is_revision(model: str, number: str) -> bool:
    """Whether both are names that requests can spell."""
    try:
        parse_revision(f"{model}@{number}")
    except InvalidArgumentError:
        return False
    return True
