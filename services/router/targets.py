"""From the name a client asks for to what a worker is asked for."""

from __future__ import annotations

from deltaserve.catalog import Catalog
from deltaserve.errors import NotFoundError, UnavailableError
from services.router.fleet import Fleet
from services.router.flight import Target


class Targets:
    """Resolves names of the base and of fine-tunes."""

    def __init__(self, catalog: Catalog, fleet: Fleet) -> None:
        self._catalog = catalog
        self._fleet = fleet

    async def resolve(self, text: str) -> Target:
        """Returns what `text` (base, `<model>`, `<model>@<revision>` or alias) stands for.

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
        manifest = await self._catalog.manifest(name)
        return Target(name.model, str(name), manifest.base.fingerprint, manifest.sizes.delta_bytes)
