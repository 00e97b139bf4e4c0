"""Which of an alias's routes a request takes, and whether it is shadowed. Pure: the same request goes the same way.

Nothing is drawn: a request's key decides, so every router chooses the same. Routes are chosen by weighted rendezvous
hashing: when a weight changes, only as many keys move as must, all of them to or from the route that changed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from deltaserve.aliases import Route, Shadow


def choose_route(alias: str, routes: Iterable[Route], key: str) -> Route:
    """Returns the route of a key.

    Args:
        alias: the alias; keys go different ways at different aliases.
        routes: at least one, those whose target is published.
        key: of the request.
    """

    def rank(route: Route) -> tuple[float, str]:
        return -math.log(_point(alias, key, route.target)) / route.weight, route.target

    return min(routes, key=rank)


def is_shadowed(alias: str, shadow: Shadow, request_id: str) -> bool:
    """Tells whether a request is among the share that the shadow computes too; independent of its route."""
    return _point(alias, request_id, "\0shadow") <= shadow.share


def _point(*parts: str) -> float:
    """Returns a number in (0, 1], uniform over the parts."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest) >> 11) + 1) / (1 << 53)
