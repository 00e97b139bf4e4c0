"""Routes and shadows by key: in proportion, the same each time, and moved by no more than weights ask."""

import random
import secrets

import pytest

from deltaserve.aliases import Route, Shadow
from services.router.rollouts import choose_route, is_shadowed

KEYS = 20_000


def shares(alias: str, routes: list[Route], keys: list[str]) -> dict[str, float]:
    found = dict.fromkeys((route.target for route in routes), 0)
    for key in keys:
        found[choose_route(alias, routes, key).target] += 1
    return {target: count / len(keys) for target, count in found.items()}


def fresh_keys() -> list[str]:
    return [secrets.token_hex(8) for _ in range(KEYS)]


@pytest.mark.parametrize("weights", [[1], [1, 1], [99, 1], [50, 30, 15, 5], [0.001, 0.003]])
def test_requests_spread_by_weight(weights: list[float]) -> None:
    routes = [Route(f"m@{n}", weight) for n, weight in enumerate(weights, start=1)]
    found = shares(secrets.token_hex(4), routes, fresh_keys())
    for route in routes:
        assert found[route.target] == pytest.approx(route.weight / sum(weights), abs=0.02)


def test_a_key_keeps_its_route_in_any_order_and_under_any_scale() -> None:
    routes = [Route(f"m@{n}", random.uniform(0.1, 5)) for n in range(1, 6)]
    for key in fresh_keys()[:500]:
        chosen = choose_route("prod", routes, key)
        assert choose_route("prod", random.sample(routes, 5), key) == chosen
        assert choose_route("prod", [Route(r.target, r.weight * 8) for r in routes], key).target == chosen.target


def test_a_larger_canary_only_gains_requests() -> None:
    keys = fresh_keys()
    before = {key: choose_route("prod", [Route("m@1", 90), Route("m@2", 8), Route("m@3", 2)], key) for key in keys}
    after = {key: choose_route("prod", [Route("m@1", 90), Route("m@2", 30), Route("m@3", 2)], key) for key in keys}
    moved = [key for key in keys if before[key].target != after[key].target]
    assert moved
    assert {after[key].target for key in moved} == {"m@2"}


def test_aliases_choose_independently() -> None:
    routes = [Route("m@1"), Route("m@2")]
    keys = fresh_keys()
    same = sum(choose_route("one", routes, key) == choose_route("two", routes, key) for key in keys)
    assert same / KEYS == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_a_share_is_shadowed_whatever_the_route(share: float) -> None:
    routes, shadow, keys = [Route("m@1"), Route("m@2")], Shadow("m@3", share), fresh_keys()
    for target in ("m@1", "m@2"):
        there = [key for key in keys if choose_route("prod", routes, key).target == target]
        assert sum(is_shadowed("prod", shadow, key) for key in there) / len(there) == pytest.approx(share, abs=0.03)
    assert [is_shadowed("prod", shadow, k) for k in keys[:99]] == [is_shadowed("prod", shadow, k) for k in keys[:99]]
