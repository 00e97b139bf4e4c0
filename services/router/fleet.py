"""All workers: one link an address, kept in step with discovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable

from deltaserve.errors import NotFoundError
from services.router.link import LinkListener, WorkerLink


class Fleet:
    """The links, and what they have in common."""

    def __init__(self, router: str, listener: LinkListener) -> None:
        self._bases: dict[str, str] = {}
        self._router = router
        self._listener = listener
        self._links: dict[str, WorkerLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def links(self) -> list[WorkerLink]:
        """Returns all links by address."""
        return [self._links[address] for address in sorted(self._links)]

    def serving(self, base_fingerprint: str) -> list[WorkerLink]:
        """Returns the links that may be sent new requests for a base."""
        return [
            link
            for link in self._links.values()
            if link.serving and link.welcome is not None and link.welcome.base_fingerprint == base_fingerprint
        ]

    def named(self, worker: str) -> list[WorkerLink]:
        """Returns the links of the worker of that name, or all for an empty name; raises NotFoundError."""
        found = [link for link in self.links() if worker in {"", link.name}]
        if not found and worker:
            known = ", ".join(link.name for link in self.links()) or "none"
            raise NotFoundError(f"no worker is named {worker!r}; known are {known}", kind="worker", name=worker)
        return found

    def bases(self) -> dict[str, str]:
        """Returns the served name of every base that a worker ever told of → its fingerprint."""
        for link in self._links.values():
            if link.welcome is not None:
                self._bases[link.welcome.base_model] = link.welcome.base_fingerprint
        return self._bases

    async def follow(self, addresses: AsyncIterable[frozenset[str]]) -> None:
        """Keeps links to the addresses, until cancelled; then all links are closed.

        A link whose address is gone stays while its Session lives: a live Session is better evidence than DNS.
        """
        try:
            async for wanted in addresses:
                self._drop(a for a in list(self._links) if a not in wanted and not self._links[a].connected)
                for address in wanted - self._links.keys():
                    link = self._links[address] = WorkerLink(address, self._router, self._listener)
                    self._tasks[address] = asyncio.create_task(link.run())
            await asyncio.Event().wait()  # a fixed list ends, its links go on
        finally:
            tasks = list(self._tasks.values())
            self._drop(list(self._links))
            await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, addresses: Iterable[str]) -> None:
        self.bases()  # what dropped links told stays known
        for address in addresses:
            self._tasks.pop(address).cancel()
            del self._links[address]
