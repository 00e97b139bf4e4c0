import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from deltaserve.errors import QuotaError
from services.worker.engine.residency import Moves, Residency


def bring(residency: Residency, revision: str, size: int = 10, *, pinned: bool = False, now: float = 0.0) -> Moves:
    residency.expect(revision, pinned=pinned)
    residency.want(revision, size, size * 4)
    moves = residency.moves({revision}, now)
    if revision in moves.load:
        residency.loaded(revision)
    return moves


def test_the_least_recently_used_idle_delta_makes_room():
    residency = Residency(20, 0)
    bring(residency, "a", now=1)
    bring(residency, "b", now=2)
    residency.moves({"a"}, 3)
    assert bring(residency, "c", now=4).evict == ["b"]
    assert residency.resident() == {"a", "c"}


def test_claimed_and_pinned_deltas_stay():
    residency = Residency(20, 0)
    bring(residency, "a", pinned=True)
    bring(residency, "b")
    residency.expect("c", pinned=False)
    residency.want("c", 10, 40)
    assert residency.moves({"b", "c"}, 1) == Moves()
    assert residency.blocked() == {"c"}
    assert residency.moves({"c"}, 2) == Moves(evict=["b"], load=["c"])
    assert residency.blocked() == set()


def test_a_claimed_delta_loads_before_a_prefetched_one():
    residency = Residency(10, 0)
    for revision in ("prefetched", "claimed"):
        residency.expect(revision, pinned=False)
        residency.want(revision, 10, 40)
    assert residency.moves({"claimed"}, 0).load == ["claimed"]


def test_the_delta_that_others_gave_way_to_loads_before_earlier_ones():
    residency = Residency(10, 0)
    for revision in ("earlier", "favoured"):
        residency.expect(revision, pinned=False)
        residency.want(revision, 10, 40)
    assert residency.moves({"earlier", "favoured"}, 0, first="favoured").load == ["favoured"]


def test_what_can_never_fit_is_refused_with_numbers():
    residency = Residency(20, 0)
    bring(residency, "a", 15, pinned=True)
    residency.expect("b", pinned=False)
    with pytest.raises(QuotaError, match=r"takes 6 bytes; the budget is 20, of which 15 are pinned"):
        residency.want("b", 6, 0)


def test_drop_waits_until_the_delta_is_idle():
    residency = Residency(20, 0)
    bring(residency, "a").load.clear()
    residency.entries["a"].dropping = True
    assert residency.moves({"a"}, 1).evict == []
    assert residency.moves(set(), 2).evict == ["a"]
    assert residency.used() == 0


def test_dense_copies_go_to_claimed_deltas_one_at_a_time_within_their_budget():
    residency = Residency(100, 40)
    assert bring(residency, "a").decode == []  # not loaded yet when the moves were made
    assert residency.moves({"a"}, 1).decode == ["a"]
    bring(residency, "b", now=2)
    assert residency.moves({"b"}, 3).decode == []  # a's is still being made
    residency.decoded("a")
    assert residency.moves({"a", "b"}, 4).decode == []  # no room, and a is claimed
    moves = residency.moves({"b"}, 5)
    assert (moves.forget_decoded, moves.decode) == (["a"], ["b"])
    assert residency.used() == 10 + 10 + 40


@settings(max_examples=50, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.data())
def test_budgets_hold_and_claims_are_never_evicted(data):
    sizes = {r: data.draw(st.integers(1, 12)) for r in "abcdef"}
    residency = Residency(20, 60)
    for now in range(40):
        claims = set(data.draw(st.lists(st.sampled_from("abcdef"), max_size=3)))
        revision = data.draw(st.sampled_from("abcdef"))
        match data.draw(st.sampled_from(["want", "loaded", "decoded", "drop"])):
            case "want" if revision not in residency.entries:
                residency.expect(revision, pinned=False)
                residency.want(revision, sizes[revision], 4 * sizes[revision])
            case "loaded":
                for entry in [e for e in residency.entries.values() if e.state == "loading"]:
                    residency.loaded(entry.revision)
            case "decoded":
                for entry in [e for e in residency.entries.values() if e.decode == "loading"]:
                    residency.decoded(entry.revision)
            case "drop" if revision in residency.entries:
                residency.entries[revision].dropping = True
        held = {e.revision for e in residency.entries.values() if e.in_memory}
        moves = residency.moves(claims, now)
        assert not set(moves.evict) & claims & held
        entries = residency.entries.values()
        assert sum(e.size for e in entries if e.in_memory) <= residency.budget
        assert sum(e.decoded_size for e in entries if e.decode) <= residency.decoded_budget


def test_what_is_worth_least_makes_room_as_long_as_routers_say_so():
    residency = Residency(30, 0)
    for time, revision in enumerate(("old", "dear", "cheap")):
        bring(residency, revision, now=time)
    residency.rank({"old": 0.5, "dear": 2.0, "cheap": 0.1}, 3)
    assert bring(residency, "new", now=4).evict == ["cheap"]
    assert bring(residency, "newer", now=5).evict == ["old"]  # "new" is not ranked yet: it stays
    assert bring(residency, "newest", now=6).evict == ["dear"]
    residency.rank({"new": 9.0, "newer": 0.0, "newest": 0.0}, 7)
    assert bring(residency, "late", now=60).evict == ["new"]  # by recency: the ranking is of long ago


def test_worth_never_moves_what_is_claimed_or_pinned():
    residency = Residency(30, 0)
    bring(residency, "pinned", pinned=True)
    bring(residency, "claimed", now=1)
    bring(residency, "idle", now=2)
    residency.rank({"pinned": 0.0, "claimed": 0.0, "idle": 5.0}, 3)
    residency.expect("new", pinned=False)
    residency.want("new", 10, 40)
    assert residency.moves({"claimed", "new"}, 4).evict == ["idle"]
