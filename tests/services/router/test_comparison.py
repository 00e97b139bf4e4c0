"""Two outputs compared as they come: any interleaving gives what comparing them whole gives."""

import itertools
import random

import pytest

from services.router.comparison import Comparison, PairCounts


def interleaved(primary: list[int], shadow: list[int]) -> Comparison:
    """Feeds both in random pieces and in random order, the ends as soon as they are due or later."""
    comparison = Comparison()
    parts = [
        (comparison.primary, comparison.primary_ended, primary),
        (comparison.shadow, comparison.shadow_ended, shadow),
    ]
    left = [list(tokens) for *_, tokens in parts]
    open_ = [0, 1]
    while open_:
        who = random.choice(open_)
        take, end, _ = parts[who]
        if left[who]:
            count = random.randint(1, 4)
            take(left[who][:count])
            left[who] = left[who][count:]
        else:
            end()
            open_.remove(who)
    return comparison


@pytest.mark.parametrize("_", range(300))
def test_any_interleaving_tells_the_common_prefix(_: int) -> None:
    common = [random.randrange(5) for _ in range(random.randrange(12))]
    primary = common + [random.randrange(5) for _ in range(random.randrange(6))]
    shadow = common + [random.randrange(5) for _ in range(random.randrange(6))]
    comparison = interleaved(primary, shadow)
    assert comparison.settled
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(primary, shadow, strict=False))
    assert comparison.agreed == len(list(same))
    assert comparison.diverged == (primary != shadow)


def test_nothing_after_a_difference_counts_and_nothing_more_is_needed() -> None:
    comparison = Comparison()
    comparison.primary([1, 2, 3])
    assert not comparison.settled
    comparison.shadow([1, 9])
    assert (comparison.settled, comparison.diverged, comparison.agreed) == (True, True, 1)
    comparison.shadow([3])
    comparison.primary([3])
    assert comparison.agreed == 1


def test_who_goes_on_after_the_other_ended_differs() -> None:
    for first, second in (("primary", "shadow"), ("shadow", "primary")):
        comparison = Comparison()
        getattr(comparison, first)([4])
        getattr(comparison, f"{first}_ended")()
        assert not comparison.settled
        getattr(comparison, second)([4])
        assert not comparison.settled
        getattr(comparison, second)([4])
        assert comparison.diverged


def test_agreement_counts_tokens_that_had_the_same_tokens_before() -> None:
    counts = PairCounts()
    assert (counts.agreement, counts.mean_divergence) == (0.0, 0.0)
    for primary, shadow in (([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [1, 2, 5, 6, 7]), ([8], [9])):
        counts.count(interleaved(primary, shadow))
    assert (counts.compared, counts.identical, counts.diverged, counts.tokens_agreed) == (3, 1, 2, 5)
    assert counts.agreement == pytest.approx(5 / 7)
    assert counts.mean_divergence == pytest.approx(1.0)
