"""Time and memory of compressing a random Llama pair of a real shape, on the CPU or on one GPU.

The pair is generated shard by shard below --folder (5.4 GB for 1.3b, 32 GB for 8b), the pipeline runs in a process of
its own, and what it took is printed beside the limits, with the seconds of each of its phases.

    .venv/bin/python -m benchmarks.compress_scale --shape 1.3b --codec sign1
    .venv/bin/python -m benchmarks.compress_scale --shape 8b --device cuda --preset tiny
    .venv/bin/python -m benchmarks.compress_scale --shape 8b --device cuda --preset tiny --layers 4 --kill-at-layer 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.hardware import describe
from benchmarks.measured_process import Clock, Peaks, contents, kill_at, run
from benchmarks.random_pair import SHAPES, config_of, generate
from services.compressor.pipeline.samples import MAX_HELD_OUT

MAX_SECONDS = 600.0  # on a GPU
MAX_DEVICE_GB = 24.0
MAX_HOST_GB = 8.0
MIN_RATIO = 13.0  # of the whole checkpoint, for the preset tiny at the shape 8b

_WORDS = (
    "a",
    "the",
    "of",
    "model",
    "base",
    "delta",
    "layer",
    "row",
    "bits",
    "few",
    "many",
    "serves",
    "stores",
    "reads",
)

Row = tuple[str, float, float | None, str]
"""What, measured, limit or None, unit."""


@dataclass(frozen=True)
class Pair:
    """A generated pair with a calibration file, and how it is to be compressed."""

    folder: Path
    device: torch.device
    options: Mapping[str, Any]

    def spec(self, work: str) -> Path:
        """Makes a work folder with the specification of a run in it; returns the specification's file."""
        (self.folder / work).mkdir()
        spec = self.folder / work / "spec.json"
        paths = {name: str(self.folder / name) for name in ("base", "tuned", "calibration")} | {
            "work": str(spec.parent)
        }
        spec.write_text(json.dumps({**paths, "device": str(self.device), "options": self.options}))
        return spec

    @property
    def gpu(self) -> int | None:
        """Number of the GPU to watch."""
        return (self.device.index or 0) if self.device.type == "cuda" else None


def measure(
    folder: Path, config: Mapping[str, Any], device: torch.device, options: Mapping[str, Any], kill_at: int | None
) -> None:
    """Generates the pair in a folder, compresses it, prints the figures; then kills a second run and resumes it."""
    began = time.monotonic()
    parameters = _generate(folder, config, device)
    _write_calibration(folder / "calibration", options["calibration_samples"], options["calibration_tokens"])
    layers = config["num_hidden_layers"]
    print(f"# {describe(device.type)}, torch {torch.__version__}")
    print(f"# {parameters / 1e9:.2f}B parameters, {layers} layers, {dict(options)}, on {device}", flush=True)
    print(f"# pair generated in {time.monotonic() - began:.0f} s", flush=True)
    pair = Pair(folder, device, options)
    seconds, peaks, clock = run(pair.spec("work"), pair.gpu)
    report = json.loads((folder / "work" / "out" / "report.json").read_text())
    _print_table(_rows(seconds, peaks, device))
    _print_times(clock)
    ratio = report["sizes"]["ratio"]
    beside = f" (target {MIN_RATIO:.0f}x, {ratio / MIN_RATIO:.2f} of it)" if _has_target(config, options) else ""
    print(f"\nwhole checkpoint {ratio:.2f}x smaller{beside}, {16 / ratio:.3f} bits a parameter")
    print(f"allocation {json.dumps(report['allocation'])}", flush=True)
    if kill_at is not None:
        _kill_and_resume(pair, kill_at)


def _has_target(config: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    return options.get("preset") == "tiny" and config["vocab_size"] == SHAPES["8b"]["vocab_size"]


def _kill_and_resume(pair: Pair, layers: int) -> None:
    """Kills a second run when so many layers are done, resumes it, and compares its result with the first run's."""
    spec = pair.spec("killed")
    done = kill_at(spec, layers)
    parts = sorted(path.name for path in spec.parent.glob("parts/*.part.safetensors"))
    seconds, _, _ = run(spec, pair.gpu)
    whole, resumed = (contents(pair.folder / work / "out") for work in ("work", "killed"))
    differing = sorted(name for name in whole.keys() | resumed.keys() if whole.get(name) != resumed.get(name))
    print(f"\nkilled by SIGKILL after layer {done}, {len(parts)} parts kept; resumed in {seconds:.1f} s")
    print(f"sha256 of the payload {resumed['delta.safetensors']}")
    if differing:
        raise SystemExit(f"the resumed result differs in {', '.join(differing)}")
    print(f"all {len(whole)} files are bit-identical to the uninterrupted run's (time of creation aside)")


def _write_calibration(path: Path, samples: int, tokens: int) -> None:
    """Writes one text of random words, a token each or more, that gives all sequences their full length when cut."""
    words = random.Random(0).choices(_WORDS, k=(samples + MAX_HELD_OUT) * tokens)
    path.write_text(json.dumps({"text": " ".join(words)}) + "\n")


def _generate(folder: Path, config: Mapping[str, Any], device: torch.device) -> int:
    """Generates in a process of its own, which takes its part of the GPU's memory with it when it ends."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(generate, (folder / "base", folder / "tuned", dict(config), device))


def _rows(seconds: float, peaks: Peaks, device: torch.device) -> list[Row]:
    on_gpu = device.type == "cuda"
    rows: list[Row] = [
        ("wall time", seconds, MAX_SECONDS if on_gpu else None, "s"),
        ("host memory, resident", peaks.host / 1e9, MAX_HOST_GB, "GB"),
        ("host memory, of no file", peaks.private / 1e9, MAX_HOST_GB, "GB"),
    ]
    if on_gpu:
        rows += [("GPU memory in use", peaks.device / 1e9, MAX_DEVICE_GB, "GB")] if peaks.device else []
        rows += [
            ("GPU memory reserved", peaks.reserved / 1e9, MAX_DEVICE_GB, "GB"),
            ("GPU memory allocated", peaks.allocated / 1e9, MAX_DEVICE_GB, "GB"),
        ]
    return rows


def _print_table(rows: list[Row]) -> None:
    print(f"\n{'peak or total':<26}{'measured':>12}{'limit':>10}{'ratio':>8}")
    for what, value, limit, unit in rows:
        beside = f"{limit:>10.0f}{value / limit:>8.2f}" if limit else f"{'-':>10}{'-':>8}"
        print(f"{what:<26}{value:>9.2f} {unit:<2}{beside}")


def _print_times(clock: Clock) -> None:
    print(f"\n{'phase':<26}{'seconds':>12}")
    for phase, seconds in clock.phases.items():
        print(f"{phase:<26}{seconds:>12.2f}")
    if clock.layers:
        count = len(clock.layers)
        print(
            f"\na layer, mean of {count}: {sum(clock.layers) / count:.2f} s, longest {max(clock.layers):.2f} s; of it:"
        )
        for step, seconds in clock.steps.items():
            print(f"  {step:<24}{seconds / count:>12.2f}")


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="1.3b")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--codec", help="one codec for all linears")
    how.add_argument("--preset", help="allocation to a preset's budget; balanced unless a codec is given")
    parser.add_argument("--samples", type=int, default=256, help="calibration sequences")
    parser.add_argument("--tokens", type=int, default=512, help="most tokens of one of them")
    parser.add_argument("--kill-at-layer", type=int, help="also kill a run after so many layers, resume and compare")
    parser.add_argument("--folder", type=Path, help="where the pair goes; a temporary folder by default")
    given = parser.parse_args()
    chosen = {"codec": given.codec} if given.codec else {"preset": given.preset or "balanced"}
    options = {**chosen, "calibration_samples": given.samples, "calibration_tokens": given.tokens}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(Path(folder), config_of(given.shape, given.layers), given.device, options, given.kill_at_layer)


if __name__ == "__main__":
    main()
