"""What the engine alone takes of a CPU, over the models of examples/.

Tokens of mixed streams, and requests whose prompts begin alike, without and with the prefix cache.

    .venv/bin/python -m benchmarks.engine_cpu

Figures are of CPU time on one thread, so that other work on the machine moves them little.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.hardware import describe
from services.worker.engine.engine import Engine
from services.worker.engine.process import build_engine
from services.worker.engine.settings import EngineSettings
from services.worker.messages import Add, DeltaChanged, FromEngine, Load, Sampling

MODELS = Path(__file__).parents[1] / "examples" / "models"
DELTAS = ("g2p", "section")
_SHARED, _OWN = 448, 64  # tokens of a prompt


def engine_of(*, prefix_cache: bool) -> Engine:
    """Returns an engine with all deltas in memory, packed."""
    sent: list[FromEngine] = []
    settings = EngineSettings(
        base_folder=str(MODELS / "base"), decoded_bytes=0, prefix_cache=prefix_cache, threads=1, step_seconds=0.0
    )
    engine, _ = build_engine(settings, sent.append, lambda: None)
    torch.set_num_threads(1)
    for name in DELTAS:
        engine.handle(Load(f"{name}@1", str(MODELS / name)), time.monotonic())
    while sum(isinstance(m, DeltaChanged) and m.state == "resident" for m in sent) < len(DELTAS):
        if failed := [m for m in sent if isinstance(m, DeltaChanged) and m.state == "failed"]:
            raise SystemExit(f"cannot load {failed[0].revision}: {failed[0]}")
        engine.step(time.monotonic())
        time.sleep(0.001)
    return engine


def cpu_seconds(engine: Engine, prompts: Sequence[list[int]], tokens: int, first: int) -> float:
    """Runs one greedy stream a prompt, over base and deltas in turn; returns the CPU seconds of this process."""
    revisions = ["", *(f"{name}@1" for name in DELTAS)]
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    for number, prompt in enumerate(prompts):
        revision = revisions[number % len(revisions)]
        engine.handle(
            Add(sequence=first + number, revision=revision, prompt=prompt, sampling=sampling), time.monotonic()
        )
    began = time.process_time()
    while not engine.idle:
        engine.step(time.monotonic())
    return time.process_time() - began


def prompts_of(count: int, shared: int, own: int, rng: random.Random, vocab: int = 2000) -> list[list[int]]:
    """Returns prompts that begin alike, model by model."""

    def tokens(length: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(length)]

    heads = [tokens(shared) for _ in range(len(DELTAS) + 1)]
    return [heads[i % len(heads)] + tokens(own) for i in range(count)]


def rounds(measure: Callable[[int], float], count: int) -> list[float]:
    """Returns figures of so many rounds, the first one, which warms up, left out."""
    return [measure(number) for number in range(count + 1)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"# {describe('cpu')}, torch {torch.__version__}; base and {', '.join(DELTAS)}", flush=True)
    rng = random.Random(0)
    engine = engine_of(prefix_cache=True)

    def mixed(number: int) -> float:
        prompts = prompts_of(given.streams, 0, 64, rng)
        return given.streams * given.tokens / cpu_seconds(engine, prompts, given.tokens, number * given.streams)

    found = rounds(mixed, given.rounds)
    print(
        f"{given.streams} streams, tokens a CPU second: best {max(found):.0f}, of {min(found):.0f} to {max(found):.0f}"
    )
    for cached in (False, True):
        engine = engine_of(prefix_cache=cached)
        prompts = prompts_of(given.streams * (given.rounds + 1), _SHARED, _OWN, rng)

        def alike(number: int, engine: Engine = engine, prompts: list[list[int]] = prompts) -> float:
            part = prompts[number * given.streams : (number + 1) * given.streams]
            return given.streams / cpu_seconds(engine, part, 8, number * given.streams)

        found = rounds(alike, given.rounds)
        name = "with" if cached else "without"
        print(
            f"prompts that share {_SHARED} of {_SHARED + _OWN} tokens, {name} the prefix cache, requests a CPU second: "
            f"best {max(found):.1f}, of {min(found):.1f} to {max(found):.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
