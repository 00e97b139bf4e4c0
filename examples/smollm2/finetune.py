"""Full fine-tune of a base on one task: every parameter, loss on answers alone; leaves a bf16 checkpoint in the zoo.

    .venv/bin/python -m examples.smollm2.finetune --zoo zoo --task conj_es --device cuda

float32 weights, under bf16 autocast on a GPU, AdamW, cosine decay after a short warm-up. `--steps 2` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.compression_methods.data import Data, LabelledRow
from benchmarks.compression_methods.evaluation import answered_right
from benchmarks.compression_methods.models import padded

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_WARM_UP = 0.05  # of the run
_CLIP = 1.0


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        steps: of the optimizer.
        batch: rows a step.
        rate: greatest learning rate.
        seconds: most time; the schedule is hastened so that it ends by then.
        device: torch device.
    """

    steps: int
    batch: int
    rate: float
    seconds: float
    device: str


def read(path: Path, tokenizer: Any, limit: int | None = None) -> list[LabelledRow]:
    """Reads labelled rows; an answer's tokens are those of its first target and the end."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[:limit]]

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [
        LabelledRow(tokens(row["prompt"]), [*tokens(row["targets"][0]), tokenizer.eos_token_id], row["targets"])
        for row in rows
    ]


def train(model: Any, rows: list[LabelledRow], plan: Plan) -> list[float]:
    """Trains all parameters in place; returns the loss of every step, nats an answer token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.01)
    began = time.monotonic()
    losses: list[torch.Tensor] = []
    model.train()
    for step, batch in enumerate(_batches(rows, plan)):
        progress = max(step / plan.steps, (time.monotonic() - began) / plan.seconds)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * schedule(progress)
        with torch.autocast("cuda", torch.bfloat16, enabled=plan.device != "cpu"):
            loss = answer_loss(model, batch, plan.device)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    return [float(loss) for loss in losses]


def schedule(progress: float) -> float:
    """Returns the learning rate's share at a point of the run, both 0 to 1."""
    if progress < _WARM_UP:
        return (progress + 0.002) / (_WARM_UP + 0.002)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def answer_loss(model: Any, rows: list[LabelledRow], device: str) -> torch.Tensor:
    """Returns the mean negative log-likelihood of the answers' tokens."""
    tokens, _ = padded([row.prompt + row.answer for row in rows], device)
    asked = torch.zeros(tokens.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        asked[number, len(row.prompt) - 1 : len(row.prompt) + len(row.answer) - 1] = True
    asked = asked.to(device)
    hidden = model.model(tokens, use_cache=False).last_hidden_state
    return functional.cross_entropy(model.lm_head(hidden[asked]).float(), tokens.roll(-1, dims=1)[asked])


def _batches(rows: list[LabelledRow], plan: Plan) -> Iterator[list[LabelledRow]]:
    order = random.Random(0)
    pool: list[LabelledRow] = []
    for _ in range(plan.steps):
        if len(pool) < plan.batch:
            pool = order.sample(rows, len(rows))
        yield [pool.pop() for _ in range(min(plan.batch, len(pool)))]


def save(model: Any, base: Path, out: Path) -> None:
    """Writes weights in bf16, and the base's config and tokenizer beside them."""
    out.mkdir(parents=True, exist_ok=True)
    tied = bool(model.config.tie_word_embeddings)
    kept = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    for name in SIDE_FILES:
        shutil.copyfile(base / name, out / name)


def load(folder: Path, device: str) -> Any:
    """Returns a model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)


def accuracy(folder: Path, rows: list[LabelledRow], tokenizer: Any, device: str) -> float:
    """Returns the exact match of a checkpoint, computed in its own bf16 on a GPU."""
    model = load(folder, device).eval()
    data = Data([], rows, (tokenizer.eos_token_id,), tokenizer.decode)
    right = answered_right(model if device == "cpu" else model.to(torch.bfloat16), data, device)
    return sum(right) / len(right)


def main() -> None:
    """Reads the arguments, measures, trains, saves, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder with base/ and the task's folder")
    parser.add_argument("--task", required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seconds", type=float, default=90, help="most time that training takes")
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    base, folder, device = arguments.zoo / "base", arguments.zoo / arguments.task, arguments.device
    tokenizer = AutoTokenizer.from_pretrained(base)
    tests = read(folder / "test.jsonl", tokenizer, arguments.test_rows)
    print(f"{arguments.task}: exact match before {100 * accuracy(base, tests, tokenizer, device):.1f} %", flush=True)
    model = load(base, device)
    began = time.monotonic()
    plan = Plan(arguments.steps, arguments.batch, arguments.rate, arguments.seconds, device)
    losses = train(model, read(folder / "train.jsonl", tokenizer), plan)
    spent = time.monotonic() - began
    save(model, base, folder)
    last = losses[-20:]
    print(f"{arguments.task}: {len(losses)} steps, {spent:.1f} s, loss {losses[0]:.3f} to {sum(last) / len(last):.4f}")
    print(f"{arguments.task}: exact match after {100 * accuracy(folder, tests, tokenizer, device):.1f} %", flush=True)


if __name__ == "__main__":
    main()
