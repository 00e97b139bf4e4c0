from __future__ import annotations

import pytest
import torch

from services.worker.engine.sampler import Choice, sample
from services.worker.engine.sequence import Sequence, sequence_of
from services.worker.messages import Add, Sampling

VOCAB = 50


def sequence(prompt: list[int] | None = None, generated: list[int] | None = None, **parameters) -> Sequence:
    sampling = Sampling(**{"max_tokens": 100, **parameters})
    return sequence_of(
        Add(sequence=1, revision="", prompt=prompt or [1], resume=generated or [], sampling=sampling), 1, 0
    )


def logits_of(values: dict[int, float], rows: int = 1) -> torch.Tensor:
    logits = torch.full((rows, VOCAB), -20.0)
    for token, value in values.items():
        logits[:, token] = value
    return logits


def support(logits: torch.Tensor, draws: int = 400, **parameters) -> set[int]:
    """The tokens that come out of many seeds."""
    rows = [sequence(seed=seed, **parameters) for seed in range(draws)]
    return {choice.token for choice in sample(logits.expand(draws, -1).clone(), rows)}


def test_temperature_zero_is_greedy_and_mixes_with_draws():
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    rows = [sequence(temperature=0), sequence(seed=5), sequence(temperature=0), sequence(temperature=1e-30)]
    tokens = [choice.token for choice in sample(logits.clone(), rows)]
    best = logits.argmax(1).tolist()
    assert [tokens[0], tokens[2], tokens[3]] == [best[0], best[2], best[3]]


def test_a_draw_does_not_depend_on_its_neighbours():
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(0))
    rows = [
        sequence(seed=i, temperature=0.5 + i / 4, top_p=0.9 if i % 2 else 1.0, top_k=i, repetition_penalty=1 + i / 8)
        for i in range(8)
    ]
    together = sample(logits.clone(), rows)
    alone = [sample(logits[i : i + 1].clone(), rows[i : i + 1])[0] for i in range(8)]
    assert together == alone


def test_top_k_keeps_the_k_most_probable():
    logits = logits_of({3: 1.0, 4: 0.9, 5: 0.8, 6: 0.7})
    assert support(logits, top_k=2) == {3, 4}
    assert support(logits, top_k=3) == {3, 4, 5}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, {0}), (0.5, {0}), (0.6, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    logits = torch.tensor([[0.5001, 0.3, 0.15, 0.0499]]).log()
    assert support(logits, top_p=top_p) == kept


def test_top_p_of_a_flat_distribution_looks_past_the_first_try():
    logits = torch.zeros(1, 2000) + torch.linspace(0, 0.01, 2000)
    kept = support(logits, draws=3000, top_p=0.5)
    assert min(kept) >= 990
    assert min(kept) < 1010


def test_min_p_is_relative_to_the_most_probable():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert support(logits, min_p=0.5) == {0, 1}


def test_penalties_and_bias():
    greedy = {"temperature": 0.0}
    logits = logits_of({3: 2.0, 4: 1.5, 5: 1.4, 6: -0.1})

    def choose(row: Sequence) -> int | None:
        return sample(logits.clone(), [row])[0].token

    assert choose(sequence(**greedy)) == 3
    assert choose(sequence([3], repetition_penalty=1.5, **greedy)) == 4  # 2 / 1.5 < 1.5
    assert choose(sequence([3], presence_penalty=2, **greedy)) == 3  # the prompt does not count
    assert choose(sequence([1], [3], presence_penalty=0.6, **greedy)) == 4
    assert choose(sequence([1], [3, 4, 3], frequency_penalty=0.4, **greedy)) == 5
    assert choose(sequence(logit_bias={6: 5.0, 999: 1.0}, **greedy)) == 6
    assert choose(sequence(logit_bias={999: 1.0}, **greedy)) == 3


def test_stop_tokens_are_held_back_until_min_tokens():
    logits = logits_of({3: 5.0, 4: 1.0})
    early = sequence([1], [8], temperature=0, stop_token_ids=[3, 999], min_tokens=2)
    late = sequence([1], [8, 8], temperature=0, stop_token_ids=[3], min_tokens=2)
    assert [c.token for c in sample(logits.expand(2, -1).clone(), [early, late])] == [4, 3]


def test_logprobs_are_of_the_model_and_logits_are_raw():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[:, 40:] = -float("inf")  # another model in the batch has a larger vocabulary
    rows = [
        sequence(temperature=0, top_logprobs=3, logit_bias={7: 50.0}),
        sequence(temperature=0, top_logprobs=VOCAB, raw_logits=True),
    ]
    first, second = sample(logits.clone(), rows)
    expected = logits[0].log_softmax(0)
    assert first.token == 7
    assert first.logprobs is not None
    assert first.logprobs.chosen == pytest.approx(float(expected[7]))
    assert first.logprobs.top_ids == expected.topk(3).indices.tolist()
    assert first.logprobs.top_values == pytest.approx(expected.topk(3).values.tolist())
    assert second.logprobs is not None
    assert sorted(second.logprobs.top_ids) == list(range(40))
    assert second.logprobs.top_values[0] == pytest.approx(float(logits[1].max()))


def test_rows_that_are_not_finite_fail_alone():
    logits = torch.zeros(3, VOCAB)
    logits[0, 5] = float("nan")
    logits[1, 5] = float("inf")
    rows = [sequence(temperature=0), sequence(seed=1), sequence(seed=1)]
    assert [choice.token is None for choice in sample(logits, rows)] == [True, True, False]


def test_no_rows_are_no_choices():
    assert sample(torch.empty(0, VOCAB), []) == []
    assert Choice(3) == Choice(3, None)
