"""Versions of aliases: what is stored, what is refused, what a rollback takes up."""

import json
import random

import pytest

from deltaserve.aliases import (
    AliasVersion,
    Route,
    Shadow,
    check_routes,
    read_version,
    stored_version,
    to_restore,
)
from deltaserve.errors import InvalidArgumentError, NotFoundError, PreconditionError


def routes(count: int) -> tuple[Route, ...]:
    return tuple(Route(f"m@{n}", random.uniform(0.1, 9)) for n in range(1, count + 1))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_version_survives_the_store(count: int) -> None:
    shadow = Shadow("m", random.uniform(0.01, 1)) if count else None
    version = AliasVersion(3, (Route("m@1"),) if count == 1 else routes(count), shadow, "2026-01-01T00:00:00Z", 2)
    assert read_version(3, json.loads(json.dumps(stored_version(version)))) == version


def test_what_older_versions_of_us_wrote_is_read() -> None:
    assert read_version(1, {"target": "m@2"}) == AliasVersion(1, (Route("m@2"),))
    assert read_version(2, {"target": ""}).routes == ()


def test_the_main_target_is_the_heaviest() -> None:
    version = AliasVersion(1, (Route("a", 1), Route("b", 5), Route("c", 2)), Shadow("d", 1))
    assert version.main == "b"
    assert version.targets == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("bad", "shadow"),
    [
        ((Route("m", 0),), None),
        ((Route("m", -1),), None),
        ((Route("m", float("nan")),), None),
        ((Route("m", float("inf")),), None),
        ((Route("m@1"), Route("m@1", 3)), None),
        ((Route("../m"),), None),
        (routes(17), None),
        (routes(2), Shadow("m", 0)),
        (routes(2), Shadow("m", 1.1)),
        (routes(2), Shadow("", 1)),
    ],
)
def test_bad_routes_are_refused(bad: tuple[Route, ...], shadow: Shadow | None) -> None:
    check_routes(routes(3), Shadow("m", 1.0))
    with pytest.raises(InvalidArgumentError):
        check_routes(bad, shadow)


def restored(history: list[AliasVersion], number: int = 0) -> int:
    """Rolls back, and returns the number of the version that is in force again."""
    former = to_restore("prod", history, number)
    history.append(AliasVersion(len(history) + 1, former.routes, restores=former.number))
    return former.number


def history_of(*steps: int) -> list[AliasVersion]:
    """Returns versions with so many routes each; 0 is a removal."""
    return [AliasVersion(number, routes(count)) for number, count in enumerate(steps, start=1)]


def test_going_back_again_goes_further_back() -> None:
    history = history_of(1, 2, 3)
    assert [restored(history), restored(history)] == [2, 1]
    with pytest.raises(PreconditionError, match="no earlier version"):
        to_restore("prod", history)
    assert restored(history, 3) == 3  # by its number, forth again
    assert restored(history) == 2


def test_a_change_after_a_rollback_goes_back_to_what_the_rollback_restored() -> None:
    history = history_of(1, 2, 3)
    restored(history, 1)
    history.append(AliasVersion(5, routes(4)))
    assert restored(history) == 1
    with pytest.raises(PreconditionError):
        to_restore("prod", history)


def test_a_removed_alias_comes_back() -> None:
    history = history_of(1, 2, 0)
    assert restored(history) == 2
    assert restored(history) == 1
    with pytest.raises(PreconditionError, match="was removed"):
        to_restore("prod", history, 3)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match="no alias 'prod'"):
        to_restore("prod", [])
    with pytest.raises(NotFoundError, match="versions 1 to 2, no 7"):
        to_restore("prod", history_of(1, 1), 7)
