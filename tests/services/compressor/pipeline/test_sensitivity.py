"""What is predicted that a small error costs, held against the KL of whole models in transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from services.compressor.pipeline.batches import Batch, make_batches
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.sensitivity import Backward, Sensitivity
from tests.services.compressor.pipeline.conftest import VOCABULARY, make_pair

CPU = torch.device("cpu")
DRAWS = 8  # of a random error: what is predicted is the mean over them
ALL = slice(None)
LAST = "model.layers.2.mlp.down_proj.weight"
LINEARS = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    LAST,
]


def sequences() -> list[list[int]]:
    random = torch.Generator().manual_seed(7)
    lengths = [int(n) for n in torch.randint(10, 40, (24,), generator=random)]
    return [torch.randint(8, VOCABULARY, (n,), generator=random).tolist() for n in lengths]


def places(batches: list[Batch], after: int = 0) -> list[torch.Tensor]:
    """Every place that has a next token and lies behind the first few."""
    found = [batch.valid & batch.valid.roll(-1, dims=1) for batch in batches]
    for one in found:
        one[:, -1] = False
        one[:, :after] = False
    return found


def measure(
    pair: tuple[Path, Path], folder: Path, after: int = 0, limit: int = 1 << 20
) -> dict[str, list[Sensitivity]]:
    both = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), CPU)
    decoder = Decoder(both.tuned.config, CPU)
    batches, memory = make_batches(sequences(), 256), Memory(limit)
    rooms = [Hidden(memory, folder, CPU) for _ in range(decoder.layers + 1)]
    found: dict[str, list[Sensitivity]] = {}
    with torch.no_grad():
        backward = Backward(both, decoder, batches, places(batches, after), rooms[:-1], rooms[-1])
        for part in backward.sensitivities():
            for name, one in part.found.items():
                found.setdefault(name, []).append(one)
    return found


def whole_model(folder: Path) -> Any:
    """The fine-tune in float64; a tied matrix comes twice, so that either use may be moved alone."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@torch.no_grad()
def logs(model: Any, after: int = 0) -> torch.Tensor:
    """Log-probabilities at all measured places."""
    outs = [model(torch.tensor([tokens])).logits[0, after:-1].log_softmax(-1) for tokens in sequences()]
    return torch.cat(outs)


@torch.no_grad()
def measured_and_predicted(
    folder: Path, names: dict[str, list[Sensitivity]], size: float = 1e-3, after: int = 0
) -> tuple[float, float]:
    """Mean KL that random errors of some matrices cause, all moved at once and by the same error."""
    model, random = whole_model(folder), torch.Generator().manual_seed(3)
    weights = [model.get_parameter(name) for name in names]
    whole, found, predicted = logs(model, after), 0.0, 0.0
    for _ in range(DRAWS):
        error = size * torch.randn(weights[0].shape, generator=random)
        for weight in weights:
            weight.add_(error)
        moved = logs(model, after)
        found += float((whole.exp() * (whole - moved)).sum(-1).mean()) / DRAWS
        predicted += sum(one.cost(error, ALL) for each in names.values() for one in each) / DRAWS
        for weight in weights:
            weight.sub_(error)
    return found, predicted


def check(folder: Path, names: dict[str, list[Sensitivity]], after: int = 0) -> None:
    found, predicted = measured_and_predicted(folder, names, after=after)
    assert found > 0
    assert 0.6 < predicted / found < 1.5, f"{list(names)}: predicted {predicted:.3g}, found {found:.3g}"


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("LlamaForCausalLM", {"tie_word_embeddings": False}),
        ("MistralForCausalLM", {"sliding_window": 8, "tie_word_embeddings": False}),
        ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),
        ("Qwen3ForCausalLM", {"tie_word_embeddings": False, "head_dim": 16}),
    ],
)
def test_errors_of_each_matrix_cost_what_is_predicted(tmp_path: Path, architecture: str, config: dict[str, Any]):
    pair = make_pair(tmp_path, architecture, **config)
    found = measure(pair, tmp_path)
    assert len(found) == 3 * 7 + 2
    for name in (*LINEARS, EMBEDDING, LM_HEAD):
        check(pair[1], {name: found[name]})


def test_a_tied_matrix_costs_what_both_its_uses_cost(tmp_path: Path):
    pair = make_pair(tmp_path)
    found = measure(pair, tmp_path)
    assert set(found) >= {EMBEDDING, LM_HEAD}
    check(pair[1], {EMBEDDING: found[EMBEDDING]})
    check(pair[1], {LM_HEAD: found[LM_HEAD]})
    check(pair[1], {EMBEDDING: found[EMBEDDING], LM_HEAD: found[LM_HEAD]})


def test_only_measured_places_count(tmp_path: Path):
    """Places that nobody asks about cost nothing, but what comes before them still moves those that count."""
    pair = make_pair(tmp_path, tie_word_embeddings=False)
    found = measure(pair, tmp_path, after=7)
    for name in (LINEARS[0], LINEARS[3], LAST, LM_HEAD):
        check(pair[1], {name: found[name]}, after=7)


def test_hidden_states_in_files_change_nothing(tmp_path: Path):
    pair = make_pair(tmp_path)
    held, filed = (measure(pair, tmp_path, limit=limit) for limit in (1 << 24, 0))
    for name, each in held.items():
        for one, other in zip(each, filed[name], strict=True):
            assert torch.equal(one.gram, other.gram)
            assert torch.equal(one.power, other.power)


def test_costs_tell_directions_apart(tmp_path: Path):
    """An error along the inputs that occur costs more than one of the same size along those that do not."""
    pair = make_pair(tmp_path, tie_word_embeddings=False)
    one = measure(pair, tmp_path)[LINEARS[5]][0]
    values, vectors = torch.linalg.eigh(one.gram)
    left = torch.randn(48)
    seen, unseen = (one.cost(1e-3 * torch.outer(left, vectors[:, k]), ALL) for k in (-1, 0))
    assert seen / unseen == pytest.approx(float(values[-1] / values[0]), rel=1e-2)
    assert seen > 2 * unseen


def test_cost_of_some_rows_is_their_share() -> None:
    one = Sensitivity(torch.eye(8), torch.arange(1.0, 7.0))
    error = torch.randn(6, 8)
    halves = [one.cost(error[rows], rows) for rows in (slice(0, None, 2), slice(1, None, 2))]
    assert sum(halves) == pytest.approx(one.cost(error, ALL), rel=1e-5)
    assert one.cost(2 * error, ALL) == pytest.approx(4 * one.cost(error, ALL), rel=1e-5)
    assert one.cost(error[:1], slice(0, 1)) == pytest.approx(0.5 * float(error[0].square().sum()), rel=1e-5)
