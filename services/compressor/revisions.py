"""What can be asked of and done to published revisions: reading, deleting, aliases, pins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from deltaserve.aliases import AliasVersion, Route, Shadow, check_routes, to_restore
from deltaserve.catalog import ALIAS, PIN, published_revisions, read_alias, read_setting, write_alias, write_setting
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

    async def delete(self, resource: str, *, force: bool = False) -> None:
        """Deletes a revision; `force` deletes it even though something points at it.

        Raises:
            NotFoundError: it is not published.
            PreconditionError: it is in use: an alias points at it, or at its model of which it is the last revision; or
                it is the newest of a pinned model.
        """
        model, revision = parse_resource(resource)
        if revision is None:
            raise InvalidArgumentError(f"name is {resource!r}; expected models/<model>/revisions/<n>", field="name")
        name = RevisionName(model, revision)
        published = await published_revisions(self._store, model)
        if revision not in published:
            raise NotFoundError(f"revision {name} is not published", kind="revision", name=name.resource)
        if not force:
            await self._check_unused(name, published)
        await withdraw(self._store, name)

    async def set_alias(
        self, alias: str, routes: tuple[Route, ...], shadow: Shadow | None = None, expected: int = 0
    ) -> AliasVersion:
        """Gives an alias a new version, which it returns; no routes remove it.

        Args:
            alias: the alias.
            routes: where requests go.
            shadow: what shadows them.
            expected: number of the version that must hold now; 0: any.

        Raises:
            AlreadyExistsError: a model has that name.
            NotFoundError: no such target, or no alias to remove.
            PreconditionError: the alias has another version than expected, or got one meanwhile.
        """
        check_name(alias, "alias")
        history = await read_alias(self._store, alias)
        if expected and (not history or history[-1].number != expected):
            found = f"version {history[-1].number}" if history else "no version"
            raise PreconditionError(f"alias {alias!r} has {found}; expected version {expected}", alias=alias)
        if routes:
            await self._check_new(alias, routes, shadow)
        elif not history or not history[-1].routes:
            raise NotFoundError(f"there is no alias {alias!r}", kind="alias", name=alias)
        version = AliasVersion(len(history) + 1, routes, shadow if routes else None, _now())
        while True:
            try:
                await write_alias(self._store, alias, version)
            except PreconditionError:
                if expected:
                    raise
                version = replace(version, number=version.number + 1)  # of two writers at once the later one wins
            else:
                return version

    async def rollback(self, alias: str, number: int = 0) -> AliasVersion:
        """Takes up a former version again (by default the one before) as a new one, which it returns.

        Raises:
            NotFoundError: no such alias, or version.
            PreconditionError: nothing to go back to; none of its routes is published; the alias changed meanwhile.
        """
        check_name(alias, "alias")
        history = await read_alias(self._store, alias)
        former = to_restore(alias, history, number)
        gone = [r.target for r in former.routes if not await self._is_published(r.target)]
        if len(gone) == len(former.routes):
            raise PreconditionError(
                f"version {former.number} of alias {alias!r} points at {', '.join(gone)}, which is not published",
                alias=alias,
            )
        version = AliasVersion(len(history) + 1, former.routes, former.shadow, _now(), restores=former.number)
        await write_alias(self._store, alias, version)
        return version

    async def aliases(self, alias: str = "") -> dict[str, list[AliasVersion]]:
        """Returns the versions, newest first, of an alias (removed or not) or of all that there are, by name.

        Raises NotFoundError when an alias that is asked for was never set.
        """
        if alias:
            check_name(alias, "alias")
            history = await read_alias(self._store, alias)
            if not history:
                raise NotFoundError(f"there is no alias {alias!r}", kind="alias", name=alias)
            return {alias: history[::-1]}
        names = await self._store.list_folders(f"settings/{ALIAS}/")
        found = {name: (await read_alias(self._store, name))[::-1] for name in names}
        return {name: history for name, history in found.items() if history[0].routes}

    async def pin(self, model: str, pinned: bool) -> None:
        """Pins a model, or no longer. Raises NotFoundError when a model to be pinned is not published."""
        check_name(model, "model")
        if pinned:
            await self._newest(model)
        await write_setting(self._store, PIN, model, {"pinned": pinned})

    async def check_free(self, model: str) -> None:
        """Raises AlreadyExistsError if an alias has the name that a model is to be published under."""
        history = await read_alias(self._store, model)
        if history and history[-1].routes:
            raise AlreadyExistsError(
                f"{model!r} is an alias of {history[-1].main!r}; choose another name, or remove the alias first",
                alias=model,
            )

    async def _check_new(self, alias: str, routes: tuple[Route, ...], shadow: Shadow | None) -> None:
        if await published_revisions(self._store, alias):
            raise AlreadyExistsError(f"{alias!r} is the name of a model; choose another alias", alias=alias)
        check_routes(routes, shadow)
        for target in AliasVersion(0, routes, shadow).targets:
            await self._check_target(target)

    async def _check_unused(self, name: RevisionName, published: list[str]) -> None:
        newest = published[-1] == name.revision
        for alias, (held, *_) in (await self.aliases()).items():
            for target in held.targets:
                if target == str(name) or (target == name.model and published == [name.revision]):
                    raise PreconditionError(
                        f"alias {alias!r} points at {target!r}; point it elsewhere or remove it, then delete {name}, "
                        "or force it",
                        alias=alias,
                    )
        pin = await read_setting(self._store, PIN, name.model)
        if newest and pin is not None and pin["pinned"]:
            raise PreconditionError(f"model {name.model!r} is pinned and {name} is its newest revision; unpin it "
                                    "first, or force it", model=name.model)  # fmt: skip

    async def _check_target(self, target: str) -> None:
        model, revision = parse_model(target, "target")
        newest = await self._newest(model)
        if revision is not None and revision not in await published_revisions(self._store, model):
            raise NotFoundError(
                f"revision {target!r} is not published; the newest is {model}@{newest}", kind="revision", name=target
            )

    async def _is_published(self, target: str) -> bool:
        model, revision = parse_model(target)
        published = await published_revisions(self._store, model)
        return bool(published) if revision is None else revision in published

    async def _newest(self, model: str) -> str:
        published = await published_revisions(self._store, model)
        if not published:
            raise NotFoundError(f"model {model!r} is not published", kind="model", name=model)
        return published[-1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
