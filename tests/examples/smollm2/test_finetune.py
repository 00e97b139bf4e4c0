"""The fine-tune over a tiny random model whose tokenizer has a token a byte."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from examples.smollm2 import finetune
from tests.benchmarks.conftest import save_zoo


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    folder = save_zoo(tmp_path / "zoo")
    (folder / "base" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return folder


def test_learns_and_saves_every_parameter_in_bf16(zoo: Path) -> None:
    base = zoo / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = finetune.read(zoo / "copy" / "train.jsonl", tokenizer)
    model = finetune.load(base, "cpu")
    losses = finetune.train(model, rows, finetune.Plan(steps=40, batch=8, rate=3e-3, seconds=1e9, device="cpu"))
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    finetune.save(model, base, zoo / "out")
    before, after = (load_file(zoo / name / "model.safetensors") for name in ("base", "out"))
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert weight.dtype == torch.bfloat16
        assert not torch.equal(weight, before[name])
    assert finetune.accuracy(zoo / "out", rows, AutoTokenizer.from_pretrained(zoo / "out"), "cpu") <= 1


def test_loss_is_that_of_answers_alone(zoo: Path) -> None:
    model = finetune.load(zoo / "base", "cpu").eval()
    rows = finetune.read(zoo / "copy" / "train.jsonl", AutoTokenizer.from_pretrained(zoo / "base"))[:5]
    rows[0].prompt.extend([9, 9, 9])  # a longer one, so that others are padded
    expected: list[float] = []
    with torch.no_grad():
        for row in rows:
            logs = model(torch.tensor([row.prompt + row.answer])).logits[0].log_softmax(-1)
            at = range(len(row.prompt) - 1, len(row.prompt) + len(row.answer) - 1)
            expected += [-float(logs[i, token]) for i, token in zip(at, row.answer, strict=True)]
        found = float(finetune.answer_loss(model, rows, "cpu"))
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_the_schedule_ends_when_its_time_has_passed(zoo: Path) -> None:
    model = finetune.load(zoo / "base", "cpu")
    rows = finetune.read(zoo / "copy" / "train.jsonl", AutoTokenizer.from_pretrained(zoo / "base"))
    assert finetune.train(model, rows, finetune.Plan(steps=10, batch=4, rate=1e-3, seconds=1e-9, device="cpu")) == []


def test_rates_rise_and_fall() -> None:
    rates = [finetune.schedule(i / 100) for i in range(100)]
    assert rates.index(max(rates)) in (5, 6)
    assert max(rates) <= 1
    assert min(rates) > 0
    assert rates[-1] < 0.01
