from pathlib import Path

import pytest
import torch

from benchmarks.compression_methods.case import StateDict, load_config, load_weights
from benchmarks.compression_methods.data import Data, LabelledRow, read_data
from benchmarks.compression_methods.evaluation import evaluate, gained
from benchmarks.compression_methods.models import build


@pytest.fixture
def parts(zoo: Path) -> tuple[object, StateDict, StateDict, Data]:
    data = read_data(zoo / "base", zoo / "copy")
    return load_config(zoo / "copy"), load_weights(zoo / "base"), load_weights(zoo / "copy"), data


def test_figures_are_those_of_one_row_at_a_time(parts: tuple[object, StateDict, StateDict, Data]) -> None:
    config, base, tuned, data = parts
    kl, agreed = [], []
    models = [build(config, weights, "cpu") for weights in (tuned, base)]
    for row in data.rows:
        tokens, begin = torch.tensor([row.prompt + row.answer]), len(row.prompt) - 1
        with torch.no_grad():
            theirs, ours = (model(tokens).logits[0, begin:-1].double().log_softmax(-1) for model in models)
        kl += (theirs.exp() * (theirs - ours)).sum(-1).tolist()
        agreed += (theirs.argmax(-1) == ours.argmax(-1)).tolist()
    figures = evaluate(config, tuned, base, data, "cpu")
    assert figures.kl == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert figures.agreement == pytest.approx(sum(agreed) / len(agreed))


def test_the_fine_tune_is_no_way_from_itself(parts: tuple[object, StateDict, StateDict, Data]) -> None:
    config, _, tuned, data = parts
    figures = evaluate(config, tuned, tuned, data, "cpu")
    assert (figures.kl, figures.agreement) == (0, 1)


def test_accuracy_is_the_share_of_greedy_continuations(parts: tuple[object, StateDict, StateDict, Data]) -> None:
    """Targets are set to what the model says to every second row, prompts being of different lengths."""
    config, _, tuned, data = parts
    model = build(config, tuned, "cpu")
    rows = []
    for number, row in enumerate(data.rows):
        prompt = row.prompt[: 2 + number % 4]
        with torch.no_grad():
            tokens = torch.tensor([prompt])
            for _ in range(40):
                said = model(tokens).logits[0, -1].argmax()
                if int(said) in data.ends:
                    break
                tokens = torch.cat([tokens, said.view(1, 1)], dim=1)
        text = data.text(tokens[0, len(prompt) :].tolist()).strip()
        rows.append(LabelledRow(prompt, row.answer, [text if number % 2 else text + "?"]))
    expected = sum(number % 2 for number in range(len(rows))) / len(rows)
    assert evaluate(config, tuned, tuned, Data([], rows, data.ends, data.text), "cpu").accuracy == expected


def test_what_is_gained_counts_rows_that_differ():
    right, reference = [True, True, False, False] * 25, [True, False, True, False] * 25
    assert gained(right, reference) == (0.0, pytest.approx(0.5**0.5 / 10))
    assert gained(reference, reference) == (0.0, 0.0)
    assert gained([True] * 100, [False] * 50 + [True] * 50) == (0.5, pytest.approx(0.05))
