"""Allocation on small random tables, held against every combination there is.

Costs are whole numbers here, so that sums of them are exact in any order.
"""

import itertools

from hypothesis import assume, given
from hypothesis import strategies as st

from services.compressor.pipeline.allocation import Allocation, Candidate, cost, hull, stored, under_budget, under_cost
from services.compressor.pipeline.choices import Choice

Point = tuple[int, int]
Tables = dict[str, list[Candidate]]


def table_of(points: list[list[Point]]) -> Tables:
    return {
        f"t{i}": [Candidate(Choice("int2", {"rank": k}), size, float(price)) for k, (size, price) in enumerate(each)]
        for i, each in enumerate(points)
    }


POINTS = st.tuples(st.integers(0, 60), st.integers(0, 400))
TABLES = st.lists(st.lists(POINTS, min_size=1, max_size=4), min_size=1, max_size=4).map(table_of)


def everything(table: Tables) -> list[Allocation]:
    return [dict(zip(table, chosen, strict=True)) for chosen in itertools.product(*table.values())]


def vertices(table: Tables) -> list[Candidate]:
    """The convex hull of cost over bytes of all allocations."""
    return hull([Candidate(Choice("all"), stored(one), cost(one)) for one in everything(table)])


@given(table=TABLES, budget=st.integers(0, 260))
def test_a_budget_is_kept_when_anything_fits(table: Tables, budget: int) -> None:
    found = under_budget(table, budget)
    smallest = min(map(stored, everything(table)))
    assert stored(found) <= max(budget, smallest)
    assert all(found[name] in table[name] for name in table)


@given(table=TABLES, budget=st.integers(0, 260))
def test_under_a_budget_nothing_on_the_hull_is_better(table: Tables, budget: int) -> None:
    fitting = [vertex for vertex in vertices(table) if vertex.bytes <= budget]
    assume(fitting)
    assert cost(under_budget(table, budget)) <= fitting[-1].cost


@given(table=TABLES, budget=st.integers(0, 260))
def test_the_optimum_is_as_near_as_the_next_byte_prices(table: Tables, budget: int) -> None:
    """By duality: what is lost is at most the bytes between the hull's vertex and the budget, at the vertex's price."""
    fitting = [one for one in everything(table) if stored(one) <= budget]
    assume(fitting)
    corners = vertices(table)
    at = max(i for i, vertex in enumerate(corners) if vertex.bytes <= budget)
    optimum, found = min(map(cost, fitting)), cost(under_budget(table, budget))
    if at + 1 == len(corners):
        assert found == optimum
        return
    here, there = corners[at], corners[at + 1]
    price = (here.cost - there.cost) / (there.bytes - here.bytes)
    assert optimum <= found <= optimum + price * (budget - here.bytes) + 1e-9


@given(table=TABLES, budget=st.integers(0, 260))
def test_no_single_upgrade_is_left_that_fits(table: Tables, budget: int) -> None:
    found = under_budget(table, budget)
    left = budget - stored(found)
    for name, taken in found.items():
        better = [c for c in table[name] if c.cost < taken.cost and taken.bytes < c.bytes <= taken.bytes + left]
        assert better == []


@given(table=TABLES, budgets=st.tuples(st.integers(0, 260), st.integers(0, 260)))
def test_more_budget_is_never_worse_than_the_hull_below_less(table: Tables, budgets: tuple[int, int]) -> None:
    low, high = sorted(budgets)
    fitting = [vertex for vertex in vertices(table) if vertex.bytes <= low]
    assume(fitting)
    assert cost(under_budget(table, high)) <= fitting[-1].cost


@given(table=TABLES, limit=st.integers(0, 1600))
def test_a_cost_limit_is_met_when_it_can_be_by_the_smallest_on_the_hull(table: Tables, limit: int) -> None:
    found = under_cost(table, limit)
    least = min(map(cost, everything(table)))
    if least > limit:
        assert cost(found) == least
        return
    assert cost(found) <= limit
    assert stored(found) <= next(vertex.bytes for vertex in vertices(table) if vertex.cost <= limit)


@given(table=TABLES, limits=st.tuples(st.integers(0, 1600), st.integers(0, 1600)))
def test_a_looser_cost_limit_stores_no_more(table: Tables, limits: tuple[int, int]) -> None:
    tight, loose = sorted(limits)
    assert stored(under_cost(table, loose)) <= stored(under_cost(table, tight))


@given(points=st.lists(POINTS, min_size=1, max_size=12))
def test_the_hull_ascends_is_convex_and_below_all(points: list[Point]) -> None:
    candidates = table_of([points])["t0"]
    found = hull(candidates)
    assert found[0].bytes == min(c.bytes for c in candidates)
    assert found[-1].cost == min(c.cost for c in candidates)
    for a, b in itertools.pairwise(found):
        assert a.bytes < b.bytes
        assert a.cost > b.cost
    for a, b, c in zip(found, found[1:], found[2:], strict=False):
        assert (a.cost - b.cost) * (c.bytes - b.bytes) > (b.cost - c.cost) * (b.bytes - a.bytes)
    for candidate in candidates:
        for a, b in itertools.pairwise(found):
            if a.bytes <= candidate.bytes <= b.bytes:
                line = a.cost * (b.bytes - candidate.bytes) + b.cost * (candidate.bytes - a.bytes)
                assert candidate.cost * (b.bytes - a.bytes) >= line


def test_bits_go_where_they_pay() -> None:
    def coded(cheap: float, dear: float) -> list[Candidate]:
        return [Candidate(Choice("sign1"), 10, dear), Candidate(Choice("int4"), 40, cheap)]

    table = {"a": coded(0.0, 1.0), "b": coded(0.0, 9.0), "c": coded(0.0, 4.0)}
    assert {n: c.choice.codec for n, c in under_budget(table, 90).items()} == {"a": "sign1", "b": "int4", "c": "int4"}
    assert [stored(under_budget(table, budget)) for budget in (0, 30, 59, 60, 90, 119, 120, 999)] == [
        30, 30, 30, 60, 90, 90, 120, 120,
    ]  # fmt: skip
    assert under_budget(table, 60)["b"].choice.codec == "int4"
    assert under_cost(table, 5.0)["b"].choice.codec == "int4"
    assert stored(under_cost(table, 5.0)) == 60
    assert stored(under_cost(table, 14.0)) == 30
