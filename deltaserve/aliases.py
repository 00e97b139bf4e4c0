"""Aliases: names that stand for one or several revisions, in versions that are never changed, only followed. Pure.

A version is one object of the store, so an alias changes whole or not at all, and its former versions are there to go
back to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltaserve.errors import InvalidArgumentError, NotFoundError, PreconditionError
from deltaserve.names import parse_model

MOST_ROUTES = 16


@dataclass(frozen=True, slots=True)
class Route:
    """One of the places that requests to an alias go to; its share is its weight over the sum of all."""

    target: str  # `<model>` or `<model>@<revision>`
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Shadow:
    """What computes a share (more than 0, at most 1) of the requests too, for comparison."""

    target: str
    share: float


@dataclass(frozen=True, slots=True)
class AliasVersion:
    """What an alias was from one change to the next.

    Attributes:
        number: from 1.
        routes: where requests go; none: the alias was removed.
        shadow: what shadows them.
        time: when it was set, RFC 3339; empty when that is not known.
        restores: number of the version that a rollback took up again; 0: it was no rollback.
    """

    number: int
    routes: tuple[Route, ...]
    shadow: Shadow | None = None
    time: str = ""
    restores: int = 0

    @property
    def main(self) -> str:
        """The target of the heaviest route, the first of equals: what the alias stands for where one must be named."""
        return max(self.routes, key=lambda route: route.weight).target

    @property
    def targets(self) -> tuple[str, ...]:
        """Everything that the alias points at, its shadow's target last."""
        return tuple(route.target for route in self.routes) + ((self.shadow.target,) if self.shadow else ())


def read_version(number: int, value: dict[str, Any]) -> AliasVersion:
    """Returns a version from its object in the store; those written before routes have `target` alone."""
    routes = tuple(Route(entry["target"], entry["weight"]) for entry in value.get("routes", ()))
    if not routes and value["target"]:
        routes = (Route(value["target"]),)
    shadow = value.get("shadow")
    return AliasVersion(
        number,
        routes,
        Shadow(shadow["target"], shadow["share"]) if shadow else None,
        value.get("time", ""),
        value.get("restores", 0),
    )


def stored_version(version: AliasVersion) -> dict[str, Any]:
    """Returns a version's object in the store; `target` is there for readers that know no routes."""
    value: dict[str, Any] = {"target": version.main if version.routes else "", "time": version.time}
    if len(version.routes) > 1:
        value["routes"] = [{"target": route.target, "weight": route.weight} for route in version.routes]
    if version.shadow is not None:
        value["shadow"] = {"target": version.shadow.target, "share": version.shadow.share}
    if version.restores:
        value["restores"] = version.restores
    return value


def check_routes(routes: Sequence[Route], shadow: Shadow | None) -> None:
    """Raises InvalidArgumentError for routes that cannot be an alias's, whatever is published."""
    if len(routes) > MOST_ROUTES:
        raise InvalidArgumentError(f"routes has {len(routes)} entries; expected at most {MOST_ROUTES}", field="routes")
    for route in routes:
        parse_model(route.target, "routes.target")
        if not (math.isfinite(route.weight) and route.weight > 0):
            raise InvalidArgumentError(
                f"the weight of {route.target!r} is {route.weight:g}; expected more than 0", field="routes.weight"
            )
    twice = {route.target for route in routes if sum(other.target == route.target for other in routes) > 1}
    if twice:
        raise InvalidArgumentError(f"routes names {sorted(twice)} twice; give each one weight", field="routes.target")
    if shadow is not None:
        parse_model(shadow.target, "shadow.target")
        if not 0 < shadow.share <= 1:
            raise InvalidArgumentError(
                f"the shadow's share is {shadow.share:g}; expected more than 0, at most 1", field="shadow.share"
            )


def to_restore(alias: str, history: Sequence[AliasVersion], number: int = 0) -> AliasVersion:
    """Returns the version that a rollback takes up again.

    Args:
        alias: the alias, for errors.
        history: its versions, oldest first, numbered from 1.
        number: the version asked for; 0: the one before that which set what holds now, removals left out. So going back
            twice goes back two versions.

    Raises:
        NotFoundError: no such alias, or no version of that number.
        PreconditionError: there is no version to go back to, or it is a removal.
    """
    if not history:
        raise NotFoundError(f"there is no alias {alias!r}", kind="alias", name=alias)
    by_number = {version.number: version for version in history}
    if number:
        if number not in by_number:
            raise NotFoundError(f"alias {alias!r} has versions 1 to {len(history)}, no {number}",
                                kind="alias version", name=f"{alias} {number}")  # fmt: skip
        found = by_number[number]
        if not found.routes:
            raise PreconditionError(f"in version {number} alias {alias!r} was removed; go back to another", alias=alias)
        return _origin(found, by_number)
    at = _origin(history[-1], by_number).number - 1
    while at and not by_number[at].routes:
        at -= 1
    if not at:
        raise PreconditionError(f"alias {alias!r} has no earlier version to go back to", alias=alias)
    return _origin(by_number[at], by_number)


def _origin(version: AliasVersion, by_number: dict[int, AliasVersion]) -> AliasVersion:
    """Returns the version that set what this one, perhaps by rollbacks, stands for."""
    while version.restores:
        version = by_number[version.restores]
    return version
