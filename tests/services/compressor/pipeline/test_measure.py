"""Costs measured over a sample of a vocabulary's rows against those over all of them."""

import os
from pathlib import Path

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING
from services.compressor.pipeline.choices import EXACT, Choice, candidates
from services.compressor.pipeline.measure import Measure, sample_rows
from services.compressor.pipeline.row_sample import by_rank
from services.compressor.pipeline.sensitivity import Sensitivity

ZOO = Path(os.environ.get("DELTASERVE_ZOO", Path(__file__).resolve().parents[5] / "shared" / "zoo"))


def heavy_tailed_power(rows: int, exponent: float = 1.2) -> torch.Tensor:
    """Few rows are dear, as few tokens are often said."""
    return (torch.randperm(rows).double() + 1).pow(-exponent).float() + 1e-7


def gram(columns: int) -> torch.Tensor:
    inputs = torch.randn(4 * columns, columns) * torch.empty(columns).log_normal_(0, 0.5)
    return inputs.T @ inputs / len(inputs)


def vocabulary_delta(rows: int, columns: int) -> torch.Tensor:
    """One direction that all rows share, and rows of different sizes."""
    delta = torch.randn(rows, columns) * torch.empty(rows, 1).log_normal_(0, 0.5)
    return 0.001 * (delta + torch.randn(columns))


def compare(
    delta: torch.Tensor, uses: list[Sensitivity], choices: list[Choice], certain: int, per_octave: int
) -> dict[str, float]:
    """Returns the ratio of sampled to whole cost of each choice."""
    whole = Measure(delta, uses, choices, sample_rows(delta, uses, about=delta.shape[0]))
    costs = [((delta @ use.gram) * delta).sum(dim=1) * use.power for use in uses]
    some = Measure(delta, uses, choices, by_rank(costs, certain, per_octave))
    ratios = {}
    for choice in choices:
        exact, sampled = whole.cost(choice), some.cost(choice)
        assert (exact is None) == (sampled is None)
        if exact is not None and sampled is not None:
            ratios[f"{choice.codec} {choice.params}"] = sampled / exact
    return ratios


def choices_of(delta: torch.Tensor) -> list[Choice]:
    found = candidates(delta.shape, 128, embedding=True, asked=None)
    return [choice for choice in found if choice.codec != EXACT]


def some_choices(delta: torch.Tensor) -> list[Choice]:
    """One of each kind: a whole measure of a large vocabulary takes seconds."""
    tiered = [choice for choice in choices_of(delta) if choice.codec == "tiered_vector8"]
    return [Choice("sign1"), Choice("int4"), tiered[-1], Choice("lowrank_vector8", {"rank": 1})]


def test_a_large_vocabulary_with_a_heavy_tail():
    torch.manual_seed(3)
    delta = vocabulary_delta(128_256, 64)
    uses = [Sensitivity(gram(64), heavy_tailed_power(len(delta)))]
    ratios = compare(delta, uses, some_choices(delta), 2048, 512)
    assert len(ratios) == 4
    # narrow rows err unlike each other, so which of them are listed is less sure
    limits = {name: 0.05 if name.startswith("tiered") else 0.01 for name in ratios}
    assert all(abs(ratio - 1) < limits[name] for name, ratio in ratios.items()), ratios


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.5])
def test_both_uses_of_a_tied_matrix(exponent: float):
    torch.manual_seed(4)
    delta = vocabulary_delta(6000, 128)
    uses = [Sensitivity(gram(128), heavy_tailed_power(len(delta), exponent)) for _ in range(2)]
    ratios = compare(delta, uses, choices_of(delta), 512, 256)
    assert all(0.95 < ratio < 1.05 for ratio in ratios.values()), ratios


@pytest.mark.zoo
@pytest.mark.parametrize("model", ["conj_fr", "g2p", "section"])
def test_embeddings_of_real_fine_tunes(model: str):
    if not ZOO.is_dir():
        pytest.skip(f"no zoo at {ZOO}; set DELTASERVE_ZOO")
    torch.manual_seed(5)
    base, tuned = (Checkpoint.open(ZOO / name).read(EMBEDDING).float() for name in ("base", model))
    delta = tuned - base
    uses = [Sensitivity(gram(delta.shape[1]), heavy_tailed_power(len(delta)))]
    ratios = compare(delta, uses, choices_of(delta), 512, 256)
    assert all(0.95 < ratio < 1.05 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("rank", [1, 4])
def test_factors_are_candidates_only_of_what_is_of_low_rank(rank: int):
    torch.manual_seed(6)
    use = [Sensitivity(gram(96), torch.rand(160))]
    choices = [Choice("lowrank", {"rank": r}) for r in (1, 2, 4, 8)]
    noise = torch.randn(160, 96)
    low = torch.randn(160, rank) @ torch.randn(rank, 96) + 0.01 * noise
    for delta, least in ((low, rank), (noise, 9)):
        measure = Measure(delta, use, choices, sample_rows(delta, use, 40))
        assert [measure.cost(choice) is not None for choice in choices] == [r >= least for r in (1, 2, 4, 8)]


def test_directions_beside_a_rest_are_candidates_where_they_hold_much():
    torch.manual_seed(7)
    use = [Sensitivity(gram(256), torch.rand(512))]
    choices = [Choice("lowrank_vector8", {"rank": r}) for r in (1, 2)]
    noise = torch.randn(512, 256)
    standing_out = noise + 0.5 * torch.randn(512, 1) * torch.randn(256)
    assert Measure(noise, use, choices, sample_rows(noise, use, 64)).cost(choices[0]) is None
    measure = Measure(standing_out, use, [*choices, Choice("vector8")], sample_rows(standing_out, use, 64))
    with_it, plain = measure.cost(choices[0]), measure.cost(Choice("vector8"))
    assert with_it is not None
    assert plain is not None
    assert with_it < plain
