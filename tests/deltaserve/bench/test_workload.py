import dataclasses
import math
import random
from collections import Counter
from typing import Any

import pytest

from deltaserve.bench.lengths import parse_lengths
from deltaserve.bench.workload import Planned, Workload, plan, weights
from deltaserve.errors import InvalidArgumentError
from tests.deltaserve.bench.conftest import assert_distributed, assert_frequencies

MODELS = tuple(f"m{i}" for i in range(12))


def load(**changes: Any) -> Workload:
    made = Workload(
        models=MODELS, rate=50.0, seconds=100.0, seed=random.getrandbits(60),
        prompt_tokens=parse_lengths("uniform:3,9", ""), output_tokens=parse_lengths("uniform:2,30", ""),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("popularity", ["uniform", "zipf", "azure"])
def test_requests_spread_by_popularity(popularity: Any) -> None:
    described = load(popularity=popularity, exponent=random.uniform(0.5, 2))
    counts = Counter(one.model for one in plan(described))
    assert_frequencies([counts[name] for name in MODELS], weights(described))


def test_the_most_popular_of_zipf_is_the_first_named() -> None:
    counts = Counter(one.model for one in plan(load(popularity="zipf")))
    assert counts.most_common(1)[0][0] == "m0"


def test_a_schedule_is_poisson() -> None:
    planned = plan(load())
    times = [one.at for one in planned]
    assert times == sorted(times)
    # given their number, times of a Poisson process are uniform
    assert_distributed(times, lambda t: t / 100.0)
    assert len(times) == pytest.approx(5000, abs=5 * math.sqrt(5000))


def test_same_seed_same_schedule() -> None:
    described = load(popularity="azure", cancelled=0.3)
    assert plan(described) == plan(described)
    assert plan(described) != plan(dataclasses.replace(described, seed=described.seed + 1))


def test_aspects_do_not_disturb_each_other() -> None:
    described = load(cancelled=0.2)
    other = dataclasses.replace(
        described, output_tokens=parse_lengths("7", ""), prompt_tokens=parse_lengths("lognormal:20,1", "")
    )
    one, two = plan(described), plan(other)
    assert [(p.at, p.model) for p in one] == [(p.at, p.model) for p in two]
    assert [p.cancel_after is None for p in one] == [p.cancel_after is None for p in two]


def test_lengths_prompts_and_ends() -> None:
    for one in plan(load(token_ids=(50, 60), most=300)):
        assert isinstance(one.prompt, list)
        assert 3 <= len(one.prompt) <= 9
        assert set(one.prompt) <= set(range(50, 61))
        assert 2 <= one.min_tokens == one.max_tokens <= 30
        assert one.ignore_eos
    for one in plan(load(prompts=("x y", "z"), until_eos=True, most=50)):
        assert one.prompt in {"x y", "z"}
        assert (one.min_tokens, one.ignore_eos) == (0, False)


def test_a_share_leaves_before_the_end() -> None:
    share = random.uniform(0.1, 0.9)
    planned = plan(load(cancelled=share))
    leaving = [one for one in planned if one.cancel_after is not None]
    n = len(planned)
    assert len(leaving) == pytest.approx(share * n, abs=5 * math.sqrt(n * share * (1 - share)))
    assert all(1 <= one.cancel_after < one.max_tokens for one in leaving if one.cancel_after is not None)
    assert not [one for one in plan(load()) if one.cancel_after is not None]


def test_a_single_token_can_only_be_left_with_it() -> None:
    planned = plan(load(cancelled=1.0, output_tokens=parse_lengths("1", "")))
    assert {one.cancel_after for one in planned} == {1}


def test_nobody_to_ask_and_nothing_to_send() -> None:
    with pytest.raises(InvalidArgumentError, match="no models"):
        plan(load(models=()))
    with pytest.raises(InvalidArgumentError, match="raise one of them"):
        plan(load(seconds=1e-9))


def test_planned_defaults_are_those_of_a_plain_request() -> None:
    one = Planned(0.0, "m", "p", 5)
    assert (one.min_tokens, one.ignore_eos, one.cancel_after) == (0, False, None)
