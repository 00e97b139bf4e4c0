"""Sequences of attempts: plans of the real planner, judged by the real gate over made-up figures."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaserve.delta.manifest import Sizes
from services.compressor.pipeline.allocation import Candidate
from services.compressor.pipeline.choices import EXACT, Choice
from services.compressor.pipeline.plan import MAX_ATTEMPTS, Attempt, Plan, Planner
from services.compressor.pipeline.quality import Quality
from services.compressor.pipeline.report import check
from services.compressor.pipeline.spec import Policy

Tables = dict[str, list[Candidate]]
PARAMETERS = 8000
FIXED = 100
LADDER = [("sign1", 130, 0.36), ("int2", 260, 0.12), ("int3", 380, 0.037), ("int4", 510, 0.012), (EXACT, 2000, 0.0)]


def made(weights: list[float]) -> Tables:
    """Tensors of a thousand parameters whose costs differ by their weights."""
    return {
        f"t{i}": [Candidate(Choice(codec), size, weight * share) for codec, size, share in LADDER]
        for i, weight in enumerate(weights)
    }


TABLE = made([0.001 * 3**i for i in range(8)])


def uniform(codec: str, table: Tables = TABLE) -> dict[str, Choice]:
    return {name: Choice(codec) for name in table}


def measured(plan: Plan, policy: Policy, table: Tables, factor: float = 1.0, drop: float | None = None) -> Attempt:
    """What a world would report in which the KL is `factor` times the predicted one."""
    wanted = {n: Choice(EXACT) if c.codec == "dense" else c for n, c in plan.choices.items()}
    chosen = [next(c for c in table[name] if c.choice == choice) for name, choice in wanted.items()]
    size, kl = FIXED + sum(c.bytes for c in chosen), factor * sum(c.cost for c in chosen)
    agreement = max(0.0, 1.0 - 0.5 * math.sqrt(kl))
    quality = Quality(100, kl, agreement, {"base": 2.0, "fine_tune": 1.0, "compressed": 1.5})
    accuracy = None if drop is None else {"base": 0.0, "fine_tune": 1.0, "compressed": 1.0 - drop * kl}
    sizes = Sizes(parameters=PARAMETERS, checkpoint_bytes=2 * PARAMETERS, delta_bytes=size, by_class={})
    gate = check(policy, quality, accuracy, sizes)
    return Attempt(
        choices=dict(plan.choices), predicted_kl=plan.predicted_kl, bits=8 * size / PARAMETERS, kl=kl,
        agreement=agreement, accuracy_drop=None if drop is None else 100 * drop * kl, failures=gate.failures,
    )  # fmt: skip


def played(planner: Planner, world: Callable[[Plan], Attempt], table: Tables = TABLE) -> list[Attempt]:
    """All attempts until the planner ends; fails when it does not."""
    attempts: list[Attempt] = []
    while plan := planner.next(table, attempts):
        attempts.append(world(plan))
        assert len(attempts) <= MAX_ATTEMPTS
    return attempts


def planner_of(policy: Policy, **changes: object) -> Planner:
    return Planner(policy, parameters=PARAMETERS, fixed_bytes=FIXED, **changes)  # type: ignore[arg-type]


def play(policy: Policy, factor: float = 1.0, drop: float | None = None, **changes: object) -> list[Attempt]:
    return played(planner_of(policy, **changes), lambda plan: measured(plan, policy, TABLE, factor, drop))


def test_a_fixed_codec_that_passes_needs_no_table() -> None:
    policy = Policy(max_kl=10.0)
    planner = planner_of(policy, first=uniform("int4"))
    plan = planner.next(None, [])
    assert plan == Plan(uniform("int4"), None)
    attempt = measured(plan, policy, TABLE)
    assert planner.next(TABLE, [attempt]) is None
    assert planner.best([attempt]) is attempt


def test_later_plans_need_a_table() -> None:
    policy = Policy(max_kl=1e-6)
    planner = planner_of(policy, first=uniform("int4"))
    attempt = measured(Plan(uniform("int4"), None), policy, TABLE)
    with pytest.raises(ValueError, match="without a profile"):
        planner.next(None, [attempt])
    with pytest.raises(ValueError, match="without a profile"):
        planner_of(policy, bits=2.0).next(None, [])


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("first", ["sign1", "int2", "int4"])
def test_after_a_miss_more_is_stored_until_the_policy_is_met(first: str, factor: float) -> None:
    start = measured(Plan(uniform(first), None), Policy(), TABLE, factor)
    attempts = play(Policy(max_kl=start.kl / 4), factor, first=uniform(first))
    assert 2 <= len(attempts) <= 3
    assert all(a.failures for a in attempts[:-1])
    assert not attempts[-1].failures
    bits, predicted = [a.bits for a in attempts], [a.predicted_kl for a in attempts[1:]]
    assert bits == sorted(set(bits))
    assert all(later is not None and later < start.kl / factor for later in predicted)


def test_a_missed_agreement_is_met() -> None:
    attempts = play(Policy(min_agreement=0.95), first=uniform("sign1"))
    assert attempts[0].agreement < 0.95 <= attempts[-1].agreement
    assert attempts[-1].bits < 0.5 * measured(Plan(uniform(EXACT), None), Policy(), TABLE).bits


def test_a_missed_accuracy_is_met() -> None:
    attempts = play(Policy(max_accuracy_drop=1.0), drop=0.2, first=uniform("sign1"))
    assert attempts[0].failures
    assert not attempts[-1].failures


def test_accuracy_that_nothing_measures_is_given_up() -> None:
    attempts = play(Policy(max_accuracy_drop=1.0), first=uniform("sign1"))
    assert all(a.failures for a in attempts)
    assert planner_of(Policy()).best(attempts) is None


@pytest.mark.parametrize("start", [{"first": uniform("int2")}, {"bits": 2.0}, {"bits": 2.0, "smallest": True}])
def test_a_cap_on_size_is_kept_while_quality_is_missed(start: dict[str, object]) -> None:
    policy = Policy(max_kl=1e-9, max_bits_per_param=3.0)
    attempts = play(policy, **start)
    assert 1 <= len(attempts) <= MAX_ATTEMPTS
    assert all(attempt.bits <= 3.0 for attempt in attempts)
    assert all(len(attempt.failures) == 1 for attempt in attempts)
    assert max(attempt.bits for attempt in attempts) > 2.9


def test_a_codec_above_the_cap_is_replaced() -> None:
    attempts = play(Policy(max_bits_per_param=3.0), first=uniform("int4"))
    assert len(attempts) == 2
    assert attempts[0].bits > 3.0 >= attempts[1].bits > 2.9
    assert not attempts[1].failures


def test_a_cap_below_the_smallest_is_given_up_at_once() -> None:
    attempts = play(Policy(max_bits_per_param=0.1), first=uniform("sign1"))
    assert len(attempts) == 1
    assert attempts[0].failures


def test_nothing_is_better_than_exact() -> None:
    attempts = play(Policy(min_agreement=1.1), first=uniform("dense"))
    assert [attempt.choices for attempt in attempts] == [uniform("dense")]
    assert attempts[0].failures


def test_attempts_end() -> None:
    """A world that never agrees, and has a table that always has more to try."""
    table = {f"t{i}": [Candidate(Choice("int2", {"rank": k}), 100 * (k + 1), 2.0**-k) for k in range(30)]
             for i in range(4)}  # fmt: skip
    policy = Policy(max_kl=0.9)

    def world(plan: Plan) -> Attempt:
        return Attempt(choices=dict(plan.choices), predicted_kl=plan.predicted_kl, bits=float(len(plan.choices)),
                       kl=1.0, agreement=0.5, accuracy_drop=None, failures=["no"])  # fmt: skip

    first = {name: candidates[0].choice for name, candidates in table.items()}
    assert len(played(planner_of(policy, first=first), world, table)) == MAX_ATTEMPTS


@pytest.mark.parametrize("bits", [1.5, 2.0, 3.0, 6.0])
def test_a_budget_without_a_policy_is_tried_once(bits: float) -> None:
    attempts = play(Policy(), bits=bits)
    assert len(attempts) == 1
    assert 0.9 * bits < attempts[0].bits <= bits


def test_a_budget_above_the_cap_keeps_to_the_cap() -> None:
    (attempt,) = play(Policy(max_bits_per_param=2.0), bits=6.0)
    assert not attempt.failures
    assert 1.8 < attempt.bits <= 2.0


@pytest.mark.parametrize("factor", [0.02, 0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("limit", [0.003, 0.03, 0.3])
def test_the_smallest_goes_down_while_there_is_room(factor: float, limit: float) -> None:
    policy = Policy(max_kl=limit)
    attempts = play(policy, factor, smallest=True)
    best = planner_of(policy).best(attempts)
    assert best is not None
    assert best.bits == min(a.bits for a in attempts if a.kl <= limit)
    if factor < 0.4:  # the first plan aims four fifths of the limit as predicted: far from the limit as measured
        assert len(attempts) > 1
        assert best.bits < attempts[0].bits
    lowest = measured(Plan(uniform("sign1"), None), policy, TABLE, factor)
    assert best.kl > 0.25 * limit or best.bits == lowest.bits


def test_the_smallest_by_agreement_alone() -> None:
    policy = Policy(min_agreement=0.75)
    attempts = play(policy, bits=4.0, smallest=True)
    best = planner_of(policy).best(attempts)
    assert best is not None
    assert best.bits < attempts[0].bits
    assert best.agreement >= 0.75


def test_a_plan_needs_something_to_follow_from() -> None:
    with pytest.raises(ValueError, match="needs a codec, a budget, or a policy"):
        planner_of(Policy()).next(TABLE, [])


@settings(max_examples=200)
@given(
    weights=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6),
    factors=st.lists(st.floats(0.01, 30.0), min_size=MAX_ATTEMPTS, max_size=MAX_ATTEMPTS),
    kl=st.none() | st.floats(1e-6, 1.0),
    agreement=st.none() | st.floats(0.5, 1.0),
    cap=st.none() | st.floats(0.5, 8.0),
    start=st.sampled_from(["sign1", "int2", "int4", "dense", "bits", "smallest"]),
)
def test_no_plan_is_tried_twice_and_the_best_is_the_smallest_that_passes(
    weights: list[float],
    factors: list[float],
    kl: float | None,
    agreement: float | None,
    cap: float | None,
    start: str,
) -> None:
    """Whatever is measured, even figures that contradict each other."""
    policy, table = Policy(max_kl=kl, min_agreement=agreement, max_bits_per_param=cap), made(weights)
    kinds: dict[str, dict[str, object]] = {"bits": {"bits": 2.0}, "smallest": {"bits": 1.1, "smallest": True}}
    planner = planner_of(policy, **kinds.get(start, {"first": uniform(start, table)}))
    ahead = iter(factors)
    attempts = played(planner, lambda plan: measured(plan, policy, table, next(ahead)), table)
    tried = [
        tuple(sorted((n, EXACT if c.codec == "dense" else c.label) for n, c in a.choices.items())) for a in attempts
    ]
    assert len(set(tried)) == len(tried) >= 1
    best, passing = planner.best(attempts), [a for a in attempts if not a.failures]
    assert (best is None) == (not passing)
    assert best is None or best.bits == min(a.bits for a in passing)
    if start != "smallest":
        assert all(a.failures for a in attempts[:-1])
