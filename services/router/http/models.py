"""`/v1/models`: everything that `model` may name."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from deltaserve.catalog import Catalog, ModelRecord
from deltaserve.errors import NotFoundError
from deltaserve.names import RevisionName
from services.router.fleet import Fleet
from services.router.targets import Targets

_OWNER = "deltaserve"


class Models:
    """Lists bases, fine-tunes, their revisions and aliases."""

    def __init__(self, catalog: Catalog, fleet: Fleet, targets: Targets, started: int) -> None:
        """`started` (seconds of the Unix epoch) stands for the time a base was made, which nobody tells."""
        self._catalog = catalog
        self._fleet = fleet
        self._targets = targets
        self._started = started

    async def listing(self) -> dict[str, Any]:
        """Returns the list: bases first, then fine-tunes by name, each followed by its revisions and aliases."""
        entries = [self._base(name) for name in sorted(self._fleet.bases())]
        for record in await self._catalog.models():
            entries += await self._of(record)
        return {"object": "list", "data": entries}

    async def one(self, name: str) -> dict[str, Any]:
        """Returns one entry; raises NotFoundError or InvalidArgumentError."""
        target = await self._targets.resolve(name)
        if not target.revision:
            return self._base(name)
        model, _, revision = target.revision.partition("@")
        return await self._entry(name, RevisionName(model, revision))

    async def _of(self, record: ModelRecord) -> list[dict[str, Any]]:
        names = {record.name: record.latest}
        for revision in record.revisions:
            name = RevisionName(record.name, revision)
            names[str(name)] = name
        entries = []
        for alias in record.aliases:
            try:
                names.setdefault(alias, await self._catalog.resolve(alias))
            except NotFoundError:
                continue  # it points at a revision that has gone
        for entry_id, meant in names.items():
            try:
                entries.append(await self._entry(entry_id, meant))
            except NotFoundError:
                continue  # deleted since the listing
        return entries

    async def _entry(self, name: str, revision: RevisionName) -> dict[str, Any]:
        manifest = await self._catalog.manifest(revision)
        created = int(datetime.fromisoformat(manifest.created).timestamp())
        return _entry(name, created) | {"root": str(revision), "parent": self._base_name(manifest.base.fingerprint)}

    def _base(self, name: str) -> dict[str, Any]:
        return _entry(name, self._started) | {"root": name, "parent": None}

    def _base_name(self, fingerprint: str) -> str | None:
        return next((name for name, known in self._fleet.bases().items() if known == fingerprint), None)


def _entry(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": _OWNER}
