"""Every method over one tiny pair: what it merges, what it says that it stores."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from benchmarks.compression_methods import ablations, bitdelta
from benchmarks.compression_methods.case import Case, Method, StateDict, is_linear, load_config, load_weights
from benchmarks.compression_methods.data import read_data
from benchmarks.compression_methods.deltacompress import deltacompress
from benchmarks.compression_methods.models import build, padded
from benchmarks.compression_methods.ours import ours
from benchmarks.compression_methods.round_to_nearest import round_to_nearest

PUBLISHED = {
    "rtn1": (round_to_nearest(1), 1, 32),
    "rtn4": (round_to_nearest(4), 4, 32),
    "deltacompress2": (deltacompress(2), 2, 16),
    "deltacompress4": (deltacompress(4), 3, 16),
}


@pytest.fixture
def pair(zoo: Path) -> tuple[StateDict, StateDict, Case]:
    base, tuned = zoo / "base", zoo / "copy"
    case = Case(base, tuned, load_config(tuned), read_data(base, tuned).calibration, "cpu")
    return load_weights(base), load_weights(tuned), case


def logits(case: Case, weights: StateDict) -> torch.Tensor:
    tokens, valid = padded(case.sequences, "cpu")
    with torch.no_grad():
        found: torch.Tensor = build(case.config, weights, "cpu")(tokens).logits[valid]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_methods_code_linears_and_keep_the_rest(name: str, pair: tuple[StateDict, StateDict, Case]) -> None:
    (method, bits, row_bits), (base, tuned, case) = PUBLISHED[name], pair
    merged, stored = method(base, tuned, case)
    assert merged.keys() == tuned.keys()
    expected = 0
    for key, weight in tuned.items():
        if is_linear(key):
            assert not torch.equal(merged[key], weight)
            expected += bits * weight.numel() + row_bits * weight.shape[0]
        else:
            assert torch.equal(merged[key], weight)
            expected += 16 * weight.numel()
    assert stored == expected


def test_round_to_nearest_is_within_half_a_step(pair: tuple[StateDict, StateDict, Case]) -> None:
    base, tuned, case = pair
    merged, _ = round_to_nearest(4)(base, tuned, case)
    for name in filter(is_linear, tuned):
        delta = tuned[name] - base[name]
        step = (delta.amax(dim=1) - delta.amin(dim=1)) / 15
        assert bool(((merged[name] - tuned[name]).abs().amax(dim=1) <= 0.52 * step).all())


def test_bitdelta_stores_signs_and_one_scale_a_matrix(pair: tuple[StateDict, StateDict, Case]) -> None:
    base, tuned, case = pair
    merged, stored = bitdelta.undistilled(base, tuned, case)
    for name in filter(is_linear, tuned):
        delta, decoded = tuned[name] - base[name], merged[name] - base[name]
        torch.testing.assert_close(decoded.abs(), delta.abs().mean().expand_as(delta), rtol=2e-3, atol=1e-7)
        assert bool((decoded * delta >= 0).all())
    linears = [weight.numel() for name, weight in tuned.items() if is_linear(name)]
    others = sum(weight.numel() for name, weight in tuned.items() if not is_linear(name))
    assert stored == sum(linears) + 16 * len(linears) + 16 * others


def test_distillation_moves_logits_towards_the_fine_tune(pair: tuple[StateDict, StateDict, Case]) -> None:
    base, tuned, case = pair
    wanted = logits(case, tuned)
    before, after = (
        functional.mse_loss(logits(case, method(base, tuned, case)[0]), wanted)
        for method in (bitdelta.undistilled, bitdelta.distilled(60))
    )
    assert float(after) < 0.95 * float(before)


def test_deltacompress_calibrates_on_compressed_activations(
    pair: tuple[StateDict, StateDict, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage's H is that of the model as merged, embedding to down_proj's input."""
    from benchmarks.compression_methods import sparse_gpt

    grams: list[torch.Tensor] = []
    compress = sparse_gpt.compress

    def recorded(delta: torch.Tensor, gram: torch.Tensor, bits: int, *, feedback: bool) -> torch.Tensor:
        grams.append(gram)
        return compress(delta, gram, bits, feedback=feedback)

    monkeypatch.setattr(sparse_gpt, "compress", recorded)
    base, tuned, case = pair
    merged, _ = deltacompress(2)(base, tuned, case)
    model = build(case.config, merged, "cpu")
    seen: list[torch.Tensor] = []
    model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for sequence in case.sequences:
            model(torch.tensor([sequence]))
    inputs = torch.cat([states[0] for states in seen])
    torch.testing.assert_close(grams[-1], inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-5)


def test_ours_counts_everything_stored(pair: tuple[StateDict, StateDict, Case]) -> None:
    base, tuned, case = pair
    merged, stored = ours({"codec": "int4", "group_size": 16})(base, tuned, case)
    assert merged.keys() == tuned.keys()
    assert torch.equal(merged["model.norm.weight"], tuned["model.norm.weight"])
    coded = sum(weight.numel() for weight in tuned.values() if weight.dim() == 2)
    assert stored > (4 + 16 / 16) * coded


@pytest.mark.parametrize(
    "ablation",
    [
        ablations.no_error_feedback,
        ablations.least_squares_scales,
        ablations.symmetric_calibration,
        ablations.min_max_grid,
        ablations.no_reconstruction,
    ],
)
def test_ablations_change_linears_and_are_undone(
    ablation: ablations.Ablation, pair: tuple[StateDict, StateDict, Case]
) -> None:
    base, tuned, case = pair
    options = {"codec": "int2", "group_size": 16, "embedding_codec": "dense"}
    whole: Method = ours(options)
    before, without, after = (method(base, tuned, case)[0] for method in (whole, ours(options, [ablation]), whole))
    last = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(before[last], without[last])
    assert all(torch.equal(before[name], after[name]) for name in before)
