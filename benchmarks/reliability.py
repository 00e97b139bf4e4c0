"""Reliability in figures: the long form of tests/reliability/.

    python -m benchmarks.reliability crafted | fuzz | atheris | crashes | flips | simulation | determinism | uploads
                                     | kills | overload | slow | soak   [--seconds S] [--count N] [--seed N]

Each part prints its figures and ends with an error when something that must hold does not.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.hardware import describe
from benchmarks.reliability_cases import bit_flips, crash_subjects, kills, neighbours, overload, simulation, uploads
from benchmarks.reliability_cases.crash_states import crash_states, recording
from benchmarks.reliability_cases.fuzzing import fuzz
from benchmarks.reliability_cases.hostile import crafted, hostile_names
from benchmarks.reliability_cases.meter import measured
from benchmarks.reliability_cases.parsers import make_parsers, outcome
from benchmarks.reliability_cases.tiny import make_tiny

Options = argparse.Namespace


def run_crafted(folder: Path, _: Options) -> None:
    parsers = make_parsers(folder)
    cases = crafted({name: parser.seeds[0] for name, parser in parsers.items()})
    told: Counter[str] = Counter()
    slowest, growth = 0.0, 0
    for case in cases:
        answers: list[str] = []
        cost = measured(lambda case=case, answers=answers: answers.append(outcome(parsers[case.parser], case.data)))
        assert answers != ["accepted"] or case.harmless, f"{case.parser}: {case.what} was accepted"
        told[answers[0]] += 1
        slowest, growth = max(slowest, cost.seconds), max(growth, cost.growth)
    print(f"{len(cases) - len(hostile_names())} crafted files, {len(set(hostile_names()))} names: {dict(told)}")
    print(f"slowest {slowest:.3f} CPU s, largest growth {growth / 2**20:.1f} MiB")


def run_fuzz(folder: Path, options: Options) -> None:
    parsers, inputs = make_parsers(folder), 0
    for parser in parsers.values():
        found = fuzz(parser, random.Random(options.seed), options.count or 10**9, options.seconds / len(parsers))
        inputs += found.inputs
        print(f"{found.parser:22}{found.inputs:9,} inputs, slowest {found.slowest:.4f} s, {dict(found.outcomes)}")
    print(f"{inputs:,} inputs over {len(parsers)} parsers, nothing but refusals")


def run_crashes(folder: Path, options: Options) -> None:
    tiny, rng = make_tiny(folder / "tiny"), random.Random(options.seed)
    for name in ("store", "uploads"):
        root = folder / name
        root.mkdir()
        with recording(root) as recorder:
            if name == "store":
                asyncio.run(crash_subjects.live_store(root, tiny, recorder, more=6))
            else:
                crash_subjects.live_upload(root, recorder)
        seen, verified, end = set[int](), 0, time.monotonic() + options.seconds / 2
        for state in crash_states(recorder.ops, rng, options.count or 12):
            key = hash((frozenset(state.files.items()), state.folders, state.acknowledged))
            if key in seen or time.monotonic() > end:
                continue
            seen.add(key)
            with tempfile.TemporaryDirectory(dir=folder) as after:
                state.write(Path(after))
                if name == "store":
                    verified += asyncio.run(crash_subjects.check_store(Path(after), state.acknowledged))
                    if rng.random() < 0.05:
                        asyncio.run(crash_subjects.go_on_with_store(Path(after), tiny))
                else:
                    crash_subjects.check_upload(Path(after), state.acknowledged)
        print(f"{name}: {len(recorder.ops)} operations, {len(seen):,} crash states, {verified:,} revisions verified")


def run_flips(folder: Path, options: Options) -> None:
    for codec in ("int4", "int2", "sign1"):
        packed, rng = make_tiny(folder / codec, codec=codec).packed, random.Random(options.seed)
        told = bit_flips.flip_payload(packed, rng, options.count or 4000)
        manifest = bit_flips.flip_manifest(packed, rng, (options.count or 4000) // 4)
        print(f"{codec}: {told.total():,} flips of the payload {dict(told)}, of the manifest {dict(manifest)}")


def run_simulation(_: Path, options: Options) -> None:
    ended: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    loads = preempted = 0
    count = options.count or 10_000
    for seed in range(options.seed, options.seed + count):
        fleet = simulation.run(seed)
        ended, faults = ended + fleet.ended, faults + fleet.faults
        loads, preempted = loads + fleet.loads, preempted + fleet.preempted
    shares = [longest / most for longest, most in map(simulation.longest_pause, range(count // 10))]
    print(f"{count:,} seeds: requests {dict(ended)}, faults {dict(faults)}, {loads:,} loads, {preempted:,} preemptions")
    print(f"longest wait for a turn: {max(shares):.2f} of the stated bound, over {len(shares):,} seeds")


def run_determinism(folder: Path, options: Options) -> None:
    for name, settings in {"packed": {"decoded_bytes": 0}, "merged": {}, "small steps": {"max_step_tokens": 16,
                           "max_running": 4, "max_deltas": 2, "max_wait_seconds": 0.01}}.items():  # fmt: skip
        rounds = options.count or 20
        f = neighbours.compare(folder / name, random.Random(options.seed), rounds, **settings)
        print(f"{name}: {f.sequences} sequences, {f.tokens:,} tokens: {f.other_tokens} sequences with other tokens")
        print(f"    logits of the same bits at {f.same_bits / f.tokens:.0%} of tokens, at most {f.largest:.1e} apart")


def run_uploads(folder: Path, options: Options) -> None:
    found = asyncio.run(
        uploads.cut_upload(folder, make_tiny(folder / "tiny"), random.Random(options.seed), options.count or 100)
    )
    size, again, most, sent = (
        f"{n / 2**20:.1f} MiB" for n in (found.size, found.received - found.size, found.most_again, found.sent)
    )
    print(f"{found.cuts} cuts of an upload of {size}: the compressor got {again} again, at most {most} after a cut")
    print(f"{sent} went over the wire")


def run_kills(folder: Path, options: Options) -> None:
    rng, tiny = random.Random(options.seed), make_tiny(folder / "tiny")
    tally = asyncio.run(kills.under_fire(folder, tiny, rng, options.count or 200, options.seconds, pace=options.pace))
    print(f"{tally.killed} kills, faults {dict(tally.faults)}")
    print(f"streams {dict(tally.streams)}, {len(tally.uploads)} uploads acknowledged and published")
    assert not tally.wrong, "\n".join(tally.wrong)


def run_overload(folder: Path, options: Options) -> None:
    found = asyncio.run(overload.overload(folder, make_tiny(folder / "tiny"), 5.0, options.seconds))
    over, refused = found.over, found.over.refused
    print(f"capacity {found.capacity.goodput:.1f} answers/s; at 5x goodput {over.goodput:.1f} "
          f"({over.goodput / found.capacity.goodput:.0%}), {dict(over.errors)}")  # fmt: skip
    print(f"refusals after p50 {1e3 * overload.percentile(refused, 0.5):.0f} ms, "
          f"p99 {1e3 * overload.percentile(refused, 0.99):.0f} ms")  # fmt: skip
    _print_memory(over)


def run_slow(folder: Path, options: Options) -> None:
    alone, beside = asyncio.run(overload.slow_consumers(folder, make_tiny(folder / "tiny"), 32, options.seconds))
    print(f"8 readers alone {alone.goodput:.1f} answers/s, beside 32 that never read {beside.goodput:.1f}")
    _print_memory(beside)


def run_soak(folder: Path, options: Options) -> None:
    found = asyncio.run(overload.soak(folder, make_tiny(folder / "tiny"), 0.8, options.seconds))
    print(f"{found.load.seconds:.0f} s, {len(found.load.done):,} answers, {dict(found.load.errors)}")
    for name, sizes in found.memory.items():
        thirds = [sum(part) / len(part) for part in (sizes[: len(sizes) // 3], sizes[-len(sizes) // 3 :])]
        files = found.files[name]
        print(f"{name:12} first third {thirds[0] / 2**20:.1f} MiB, last third {thirds[1] / 2**20:.1f} MiB, "
              f"open files {files[len(files) // 3]} and {files[-1]}")  # fmt: skip
    print(f"KV blocks {found.kv_free[0]}, free at the end {found.kv_free[1]}")


def _print_memory(load: overload.Load) -> None:
    for name, (first, most) in load.memory.items():
        print(f"{name:12} {first / 2**20:.0f} MiB, at most {most / 2**20:.0f} MiB")


PARTS: dict[str, Callable[[Path, Options], None]] = {
    name.removeprefix("run_"): part for name, part in list(globals().items()) if name.startswith("run_")
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "atheris"])
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU time of fuzzing; wall time of the others")
    parser.add_argument("--count", type=int, default=0, help="inputs, states, flips, seeds, rounds, cuts or kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.6, help="seconds between two faults of `kills`")
    options = parser.parse_args()
    if options.part == "atheris":
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.reliability_cases.coverage_guided",
                                  str(options.seconds)])  # fmt: skip
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    print(describe())
    memory = Path("/dev/shm")  # where syncing files takes no time
    with tempfile.TemporaryDirectory(prefix="reliability-", dir=memory if memory.is_dir() else None) as folder:
        began = time.monotonic()
        PARTS[options.part](Path(folder), options)
        print(f"{options.part}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
