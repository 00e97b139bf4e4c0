"""Where the workers are: a fixed list, and DNS names that are resolved again and again."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence

from deltaserve.errors import InvalidArgumentError

log = logging.getLogger(__name__)

_DNS = "dns:///"


class Discovery:
    """Turns the `workers` setting into addresses: `host:port` is one, `dns:///name:port` all that the name has."""

    def __init__(self, entries: Sequence[str], seconds: float) -> None:
        """Raises InvalidArgumentError for an entry that is neither; `seconds` is the time between two resolutions."""
        self._fixed = [e for e in entries if not e.startswith(_DNS)]
        self._names = [e.removeprefix(_DNS) for e in entries if e.startswith(_DNS)]
        self._seconds = seconds
        self._found: dict[str, list[str]] = {}
        for entry in (*self._fixed, *self._names):
            host, _, port = entry.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise InvalidArgumentError(
                    f"worker {entry!r} is not an address; expected host:port or dns:///name:port", field="workers"
                )

    async def addresses(self) -> AsyncIterator[frozenset[str]]:
        """Yields the addresses at once, and again whenever names may have changed; without names only once."""
        yield await self._resolve()
        while self._names:
            await asyncio.sleep(self._seconds)
            yield await self._resolve()

    async def _resolve(self) -> frozenset[str]:
        for name in self._names:
            try:
                self._found[name] = await _lookup(name)
            except OSError as error:  # keep what was known: DNS being down says nothing about workers
                log.warning("cannot resolve %s: %s", name, error)
        return frozenset(self._fixed).union(*self._found.values())


async def _lookup(name: str) -> list[str]:
    host, _, port = name.rpartition(":")
    answers = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    four = sorted({f"{a[4][0]}:{port}" for a in answers if a[0] == socket.AF_INET})
    six = sorted({f"[{a[4][0]}]:{port}" for a in answers if a[0] == socket.AF_INET6})
    return four or six  # both would count every worker twice
