"""Every way to compress a fine-tune on one table: bits that are stored, and what is lost.

For each fine-tune of a zoo (`base/` and one folder a fine-tune with train.jsonl and test.jsonl) and each method: stored
bits a parameter and the whole checkpoint's ratio, everything counted (scales, masks, embeddings, norms); KL in nats a
token and top-1 agreement with the fine-tune over held-out answers; exact match of the greedy continuation over
test.jsonl, and the points gained on the fine-tune over the same rows with their standard error. All methods calibrate
with the same 256 rows of train.jsonl, and whole models of `transformers` over merged weights measure them all.

    .venv/bin/python -m benchmarks.compression --models conj_fr --json compression.json --ablations

Rows that the JSON file already has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

from benchmarks.compression_methods.bitdelta import STEPS
from benchmarks.compression_methods.case import STORED_BITS, Case, Method, StateDict, load_config, load_weights
from benchmarks.compression_methods.catalogue import catalogue
from benchmarks.compression_methods.data import Data, read_data
from benchmarks.compression_methods.evaluation import answered_right, evaluate, gained
from benchmarks.compression_methods.models import build
from benchmarks.hardware import describe
from deltaserve.files import publish, temp_beside

HEADER = (
    f"{'model':12} {'method':36} {'bits/p':>7} {'ratio':>8} {'KL':>9} {'agree %':>8} {'exact %':>8} {'gained':>12} "
    f"{'seconds':>8}"
)


@dataclass(frozen=True)
class Row:
    """One line of the table, see the module; shares are 0 to 1, seconds the compression's, ratio None for 0 bits.

    Rows of older files do not say what was gained.
    """

    model: str
    method: str
    bits_per_parameter: float
    ratio: float | None
    kl: float
    agreement: float
    accuracy: float
    compress_seconds: float
    test_rows: int
    hardware: str
    gained: float | None = None
    gained_error: float | None = None

    def line(self) -> str:
        """Returns the row as text under HEADER."""
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}x"
        gained = "-"
        if self.gained is not None and self.gained_error is not None:
            gained = f"{100 * self.gained:+.2f} ±{100 * self.gained_error:.2f}"
        return (
            f"{self.model:12} {self.method:36} {self.bits_per_parameter:7.3f} {ratio:>8} {self.kl:9.5f} "
            f"{100 * self.agreement:8.2f} {100 * self.accuracy:8.2f} {gained:>12} {self.compress_seconds:8.1f}"
        )


class Results:
    """Rows measured so far, in a JSON file when there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows = [Row(**row) for row in json.loads(path.read_text())] if path and path.exists() else []

    def find(self, model: str, method: str) -> Row | None:
        """Returns a row that is there already."""
        return next((row for row in self.rows if (row.model, row.method) == (model, method)), None)

    def add(self, row: Row) -> None:
        """Adds a row, and writes the file before it returns."""
        self.rows.append(row)
        if self.path:
            temp = temp_beside(self.path)
            temp.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")
            publish(temp, self.path)


class Bench:
    """Methods over one fine-tune; weights and data are read when the first method is measured.

    Attributes:
        name: of the fine-tune.
    """

    def __init__(self, zoo: Path, name: str, device: str, limit: int | None) -> None:
        self.name, self._device, self._limit = name, device, limit
        self._base, self._tuned = zoo / "base", zoo / name
        self._ready: tuple[StateDict, StateDict, Case, Data] | None = None
        self._reference: list[bool] | None = None

    def measure(self, name: str, method: Method) -> Row:
        """Runs a method and evaluates what it made."""
        base, tuned, case, data = self._prepared()
        began = time.monotonic()
        merged, bits = method(base, tuned, case)
        if self._device != "cpu":
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
        figures = evaluate(case.config, tuned, merged, data, self._device)
        more, error = gained(figures.right, self._fine_tune_right())
        parameters = sum(weight.numel() for weight in tuned.values())
        return Row(
            model=self.name,
            method=name,
            bits_per_parameter=bits / parameters,
            ratio=STORED_BITS * parameters / bits if bits else None,
            kl=figures.kl,
            agreement=figures.agreement,
            accuracy=figures.accuracy,
            compress_seconds=seconds,
            test_rows=len(data.rows),
            hardware=hardware(self._device),
            gained=more,
            gained_error=error,
        )

    def _fine_tune_right(self) -> list[bool]:
        if self._reference is None:
            _, tuned, case, data = self._prepared()
            self._reference = answered_right(build(case.config, tuned, self._device), data, self._device)
        return self._reference

    def _prepared(self) -> tuple[StateDict, StateDict, Case, Data]:
        if self._ready is None:
            data = read_data(self._base, self._tuned, limit=self._limit)
            case = Case(self._base, self._tuned, load_config(self._tuned), data.calibration, self._device)
            self._ready = load_weights(self._base), load_weights(self._tuned), case, data
        return self._ready


def hardware(device: str) -> str:
    """Returns on what a row is measured."""
    card = "" if device == "cpu" else f"{torch.cuda.get_device_name(device)}, "
    return f"{card}{describe()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def main() -> None:
    """Reads the arguments, prints the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with base/ and the fine-tunes")
    parser.add_argument("--models", help="fine-tunes, comma-separated; all of the zoo's by default")
    parser.add_argument("--rows", default="*", help="methods in order: shell patterns with ; between")
    parser.add_argument("--ablations", action="store_true", help="also measure ours with one part taken out at a time")
    parser.add_argument("--steps", type=int, default=STEPS, help="of BitDelta's distillation")
    parser.add_argument("--limit", type=int, help="rows of each test set; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 for torch's own choice")
    parser.add_argument("--json", type=Path, help="file that rows are added to, and not measured again from")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which no row is begun")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    deadline = time.monotonic() + arguments.time_limit
    zoo = arguments.zoo.resolve()
    models = arguments.models.split(",") if arguments.models else _fine_tunes(zoo)
    methods = catalogue(arguments.steps, ablations=arguments.ablations)
    patterns = arguments.rows.split(";")
    chosen = dict.fromkeys(name for pattern in patterns for name in methods if fnmatch(name, pattern))
    results = Results(arguments.json)
    print(f"# {hardware(arguments.device)}\n{HEADER}", flush=True)
    for model in models:
        bench = Bench(zoo, model, arguments.device, arguments.limit)
        for name in chosen:
            row = results.find(model, name)
            if row is None:
                if time.monotonic() > deadline:
                    print(f"{model:12} {name:36} not begun: the time limit has passed", flush=True)
                    continue
                row = bench.measure(name, methods[name])
                results.add(row)
            print(row.line(), flush=True)


def _fine_tunes(zoo: Path) -> list[str]:
    return sorted(test.parent.name for test in zoo.glob("*/test.jsonl"))


if __name__ == "__main__":
    main()
