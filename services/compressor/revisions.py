"""What can be asked of and done to published revisions: reading, deleting, aliases, pins."""

from __future__ import annotations

from dataclasses import dataclass

from deltaserve.catalog import ALIAS, PIN, published_revisions, read_setting, write_setting
from deltaserve.delta.manifest import MANIFEST_FILE, Manifest, parse_manifest
from deltaserve.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PreconditionError
from deltaserve.names import RevisionName, check_name, parse_model, parse_resource
from deltaserve.store import Store, delta_key
from services.compressor.publication import withdraw


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision as it is stored."""

    name: RevisionName
    manifest: Manifest
    manifest_json: str


class Revisions:
    """Published revisions in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, resource: str) -> StoredRevision:
        """Returns `models/<model>/revisions/<n>`, or the newest of `models/<model>`. Raises NotFoundError."""
        model, revision = parse_resource(resource)
        name = RevisionName(model, revision or await self._newest(model))
        try:
            data = await self._store.get(delta_key(name, MANIFEST_FILE))
        except NotFoundError as error:
            raise NotFoundError(f"revision {name} is not published", kind="revision", name=name.resource) from error
        return StoredRevision(name, parse_manifest(data), data.decode())

    async def delete(self, resource: str) -> None:
        """Deletes a revision.

        Raises:
            NotFoundError: it is not published.
            PreconditionError: an alias points at it, or at its model of which it is the last revision.
        """
        model, revision = parse_resource(resource)
        if revision is None:
            raise InvalidArgumentError(f"name is {resource!r}; expected models/<model>/revisions/<n>", field="name")
        name = RevisionName(model, revision)
        published = await published_revisions(self._store, model)
        if revision not in published:
            raise NotFoundError(f"revision {name} is not published", kind="revision", name=name.resource)
        for alias, target in (await self._aliases()).items():
            if target == str(name) or (target == model and published == [revision]):
                raise PreconditionError(
                    f"alias {alias!r} points at {target!r}; point it elsewhere or remove it, then delete {name}",
                    alias=alias,
                )
        await withdraw(self._store, name)

    async def set_alias(self, alias: str, target: str) -> None:
        """Points an alias at a model or revision; an empty target removes it.

        Raises:
            AlreadyExistsError: a model has that name.
            NotFoundError: no such target, or no alias to remove.
        """
        check_name(alias, "alias")
        if not target:
            if await read_setting(self._store, ALIAS, alias) is None:
                raise NotFoundError(f"there is no alias {alias!r}", kind="alias", name=alias)
        else:
            if await published_revisions(self._store, alias):
                raise AlreadyExistsError(f"{alias!r} is the name of a model; choose another alias", alias=alias)
            await self._check_target(target)
        await write_setting(self._store, ALIAS, alias, {"target": target})

    async def pin(self, model: str, pinned: bool) -> None:
        """Pins a model, or no longer. Raises NotFoundError when a model to be pinned is not published."""
        check_name(model, "model")
        if pinned:
            await self._newest(model)
        await write_setting(self._store, PIN, model, {"pinned": pinned})

    async def check_free(self, model: str) -> None:
        """Raises AlreadyExistsError if an alias has the name that a model is to be published under."""
        value = await read_setting(self._store, ALIAS, model)
        if value is not None and value["target"]:
            raise AlreadyExistsError(
                f"{model!r} is an alias of {value['target']!r}; choose another name, or remove the alias first",
                alias=model,
            )

    async def _check_target(self, target: str) -> None:
        model, revision = parse_model(target, "target")
        newest = await self._newest(model)
        if revision is not None and revision not in await published_revisions(self._store, model):
            raise NotFoundError(
                f"revision {target!r} is not published; the newest is {model}@{newest}", kind="revision", name=target
            )

    async def _newest(self, model: str) -> str:
        published = await published_revisions(self._store, model)
        if not published:
            raise NotFoundError(f"model {model!r} is not published", kind="model", name=model)
        return published[-1]

    async def _aliases(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for alias in await self._store.list_folders(f"settings/{ALIAS}/"):
            value = await read_setting(self._store, ALIAS, alias)
            if value is not None and value["target"]:
                found[alias] = value["target"]
        return found
