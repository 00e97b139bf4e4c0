"""From the name a client asks for to what a worker is asked for."""

from __future__ import annotations

from deltaserve.catalog import Catalog
from deltaserve.errors import NotFoundError, UnavailableError
from deltaserve.names import RevisionName
from services.router.fleet import Fleet
from services.router.flight import Target
from services.router.rollouts import choose_route, is_shadowed


class Targets:
    """Resolves names of the base and of fine-tunes."""

    def __init__(self, catalog: Catalog, fleet: Fleet) -> None:
        self._catalog = catalog
        self._fleet = fleet

    async def resolve(self, text: str, key: str = "") -> Target:
        """Returns what `text` (base, `<model>`, `<model>@<revision>` or alias) stands for.

        Where an alias has several routes, `key` decides; without one the heaviest is meant.

        Raises:
            InvalidArgumentError: not a well-formed name.
            NotFoundError: nothing of that name.
            UnavailableError: no such fine-tune, and no worker has told the base's name yet.
        """
        bases = self._fleet.bases()
        if text in bases:
            return Target(text, "", bases[text])
        try:
            name = await self._catalog.resolve(text)
        except NotFoundError as error:
            if not bases:
                raise UnavailableError(
                    f"{error.message}; it may be the base, but no worker has connected yet to tell"
                ) from error
            raise NotFoundError(
                f"{error.message}; the base is {', '.join(sorted(bases))}", kind=error.kind, name=error.name
            ) from error
        return await self.target(self._routed(text, key) or name)

    def shadow(self, text: str, request_id: str, primary: Target) -> RevisionName | None:
        """Returns the revision that is to compute a request for `text` beside `primary`; None: nothing."""
        held = self._catalog.alias(text)
        if held is None or held.shadow is None or not is_shadowed(text, held.shadow, request_id):
            return None
        name = self._catalog.published(held.shadow.target)
        if name is None or str(name) == primary.revision:
            return None
        return name

    async def target(self, name: RevisionName) -> Target:
        """Returns a revision as a target; raises NotFoundError."""
        manifest = await self._catalog.manifest(name)
        return Target(name.model, str(name), manifest.base.fingerprint, manifest.sizes.delta_bytes)

    def _routed(self, text: str, key: str) -> RevisionName | None:
        held = self._catalog.alias(text)
        if held is None or not key or len(held.routes) == 1:
            return None
        there = [route for route in held.routes if self._catalog.published(route.target)]
        return self._catalog.published(choose_route(text, there, key).target) if there else None
