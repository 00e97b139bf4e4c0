"""Whether a request's tokens and logits depend on what else is in its batches: the real engine, driven by hand."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability_cases.tiny import make_tiny, pack
from services.worker.engine.process import build_engine
from services.worker.engine.settings import EngineSettings
from services.worker.messages import Add, FromEngine, Load, Output, Sampling, Step

VOCABULARY = 257
_PATIENCE = 60.0  # seconds of wall time for loads


@dataclass
class Engine:
    """An engine in this process; a millisecond a step."""

    sent: list[FromEngine] = field(default_factory=list)
    outputs: dict[int, list[Output]] = field(default_factory=dict)
    now: float = 0.0
    number: int = 0

    def start(self, base: Path, **settings: Any) -> Engine:
        """Loads the base."""
        options = EngineSettings(base_folder=str(base), threads=1, kv_bytes=4 << 20, **settings)
        self.engine, _ = build_engine(options, self.sent.append, lambda: None)
        return self

    def add(self, revision: str, prompt: list[int], **sampling: Any) -> int:
        """Adds a sequence with all its raw logits; returns its number."""
        self.number += 1
        options = Sampling(**{"top_logprobs": VOCABULARY, "raw_logits": True, **sampling})
        self.engine.handle(Add(sequence=self.number, revision=revision, prompt=prompt, sampling=options), self.now)
        return self.number

    def step(self) -> None:
        """Computes a step and collects its outputs."""
        self.now += 0.001
        begin = len(self.sent)
        if not self.engine.step(self.now):
            time.sleep(0.0005)  # for the loader's thread
        for message in self.sent[begin:]:
            for output in message.outputs if isinstance(message, Step) else ():
                self.outputs.setdefault(output.sequence, []).append(output)
        del self.sent[:]

    def run(self) -> None:
        """Steps until every sequence has ended."""
        end = time.monotonic() + _PATIENCE
        while not self.engine.idle:
            assert time.monotonic() < end, "the engine never gets done"
            self.step()

    def tokens(self, sequence: int) -> list[int]:
        """Returns what a sequence generated."""
        assert self.outputs[sequence][-1].finish in {"length", "stop"}, self.outputs[sequence][-1]
        return [token for output in self.outputs[sequence] for token in output.tokens]

    def logits(self, sequence: int) -> torch.Tensor:
        """Returns its raw logits, [tokens, VOCABULARY]."""
        entries = [entry for output in self.outputs[sequence] for entry in output.logprobs]
        rows = torch.full((len(entries), VOCABULARY), float("nan"))
        for row, entry in zip(rows, entries, strict=True):
            row[entry.top_ids] = torch.tensor(entry.top_values)
        return rows


@dataclass(slots=True)
class Compared:
    """Sequences compared with themselves alone.

    Attributes:
        sequences, tokens: compared.
        other_tokens: sequences whose tokens were not the same.
        same_bits: tokens whose logits were the same bit for bit.
        largest: largest absolute difference of a logit, up to the first other token.
    """

    sequences: int = 0
    tokens: int = 0
    other_tokens: int = 0
    same_bits: int = 0
    largest: float = 0.0


def compare(folder: Path, rng: random.Random, rounds: int, **settings: Any) -> Compared:
    """Runs each of some requests alone, then among random neighbours `rounds` times."""
    tiny = make_tiny(folder, seed=rng.randrange(1 << 30))
    engine = Engine().start(tiny.base, **settings)
    revisions = [""]
    for codec in ("int4", "int2", "sign1"):
        out = pack(tiny.base, tiny.tuned, folder / codec, codec)
        engine.engine.handle(Load(f"{codec}@1", str(out)), engine.now)
        revisions.append(f"{codec}@1")
    subjects = [(revision, _prompt(rng), _sampling(rng)) for revision in revisions for _ in range(3)]
    alone = []
    for subject in subjects:
        sequence = engine.add(subject[0], subject[1], **subject[2])
        engine.run()
        alone.append(sequence)
    found = Compared()
    for _ in range(rounds):
        for again, first in zip(_among(engine, rng, subjects, revisions), alone, strict=True):
            _note(found, engine, first, again)
    return found


def _among(engine: Engine, rng: random.Random, subjects: list[Any], revisions: list[str]) -> list[int]:
    order = list(range(len(subjects)))
    rng.shuffle(order)
    numbers = [0] * len(subjects)
    for place in order:
        revision, prompt, sampling = subjects[place]
        numbers[place] = engine.add(revision, prompt, **sampling)
        for _ in range(rng.randrange(4)):
            engine.add(rng.choice(revisions), _prompt(rng), **_sampling(rng))
        for _ in range(rng.randrange(3)):
            engine.step()
    engine.run()
    return numbers


def _note(found: Compared, engine: Engine, first: int, again: int) -> None:
    before, after = engine.tokens(first), engine.tokens(again)
    found.sequences += 1
    found.tokens += len(before)
    found.other_tokens += before != after
    same = next(
        (at for at, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    one, other = engine.logits(first)[: same + 1], engine.logits(again)[: same + 1]
    rows = min(len(one), len(other))
    found.largest = max(found.largest, float((one[:rows] - other[:rows]).abs().max()))
    found.same_bits += int((one[:rows] == other[:rows]).all(1).sum())


def _prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(1, VOCABULARY) for _ in range(rng.choice((1, 3, 20, 90)))]


def _sampling(rng: random.Random) -> dict[str, Any]:
    greedy = {"temperature": 0.0}
    seeded = {"temperature": rng.choice((0.5, 1.0)), "top_p": rng.choice((0.8, 1.0)), "seed": rng.randrange(1 << 32)}
    return {**rng.choice((greedy, seeded)), "max_tokens": rng.choice((4, 16, 24))}
