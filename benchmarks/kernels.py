"""How fast the kernels are, against the bytes that they read and against what one would do without them.

    python -m benchmarks.kernels --quick              # a minute and a half
    python -m benchmarks.kernels --json out.json      # all codecs, deltas, rows, both models
    python -m benchmarks.kernels --tune               # how `sbmm` is best compiled

A row is one linear of one layer. `GB/s` counts packed bytes; `% copy` compares with a large device copy measured in the
same run; `/floor` is the time over that of those bytes at that rate. Then, as multiples of our time: a loop of cuBLAS
bf16 products with dense weights, one a delta (`dense`); packed weights merged by our kernel and then multiplied
(`merge`); and our kernel once for each delta (`loop`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.hardware import describe
from benchmarks.kernel_cases import CODECS, MODELS, Case, Pool, build
from benchmarks.kernel_decoding import measure_decoding
from benchmarks.kernel_timing import Timer, copy_rate, graph_microseconds
from deltaserve.errors import PreconditionError
from deltaserve.ops.kernel_library import CudaKernels, KernelLibrary
from deltaserve.ops.merge_packed import merge_packed
from deltaserve.ops.packed_sbmm import DEFAULT_TUNING, Tuning

POOL_BYTES = 6 << 30
TUNINGS = (
    DEFAULT_TUNING,
    Tuning(stages=5),
    Tuning(l2_prefetch=256),
    Tuning(l2_prefetch=0),
    Tuning(stages=8, x_bytes=118784),
    Tuning(warps=8, x_bytes=66048),
    Tuning(warps=8, x_bytes=66048, l2_prefetch=256),
    Tuning(warps=8, x_bytes=49152, stages=8),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One measured case; times in microseconds."""

    case: Case
    packed_bytes: int
    us: float
    gbs: float
    of_copy: float
    dense_us: float
    merge_us: float
    loop_us: float

    def line(self) -> str:
        """Returns the row of the table."""
        c = self.case
        return (
            f"{c.model:<3} {c.linear:<8} {c.codec:<12} {c.deltas:>3} x {c.rows:<3} {self.us:>8.1f} {self.gbs:>6.0f} "
            f"{100 * self.of_copy:>5.1f}% {1 / self.of_copy:>6.2f} {self.dense_us / self.us:>6.1f} "
            f"{self.merge_us / self.us:>6.1f} {self.loop_us / self.us:>6.1f}"
        )


HEADER = (
    f"{'':<3} {'linear':<8} {'codec':<12} {'deltas x rows':<9} {'us':>6} {'GB/s':>6} {'% copy':>6} {'/floor':>6} "
    f"{'dense':>6} {'merge':>6} {'loop':>6}"
)


class Baselines:
    """What a delta costs without the batched kernel, measured once for each linear, codec and number of rows."""

    def __init__(self, pool: Pool, kernels: KernelLibrary, timer: Timer) -> None:
        self._pool, self._kernels, self._timer = pool, kernels, timer
        self._dense: dict[tuple[object, ...], float] = {}
        self._merge: dict[tuple[object, ...], float] = {}

    def dense(self, case: Case) -> float:
        """Microseconds of one product with dense weights, cold in the cache."""
        key = (case.model, case.linear, case.rows)
        if key not in self._dense:
            n, k = case.shape
            weights = self._pool.dense(n, k)
            x = torch.randn(case.rows, k, device=self._pool.device).bfloat16()
            out = torch.empty(case.rows, n, device=self._pool.device, dtype=torch.bfloat16)
            us = self._timer(lambda: [torch.matmul(x, w.T, out=out) for w in weights])
            self._dense[key] = us / len(weights)
        return self._dense[key]

    def merge(self, case: Case) -> float:
        """Microseconds of merging one delta's weights of the linear."""
        key = (case.model, case.linear, case.codec)
        if key not in self._merge:
            built = build(Case(case.model, case.linear, case.codec, 1, 1), self._pool)
            bases = [self._pool.dense(part.n, case.shape[1]) for part in built.parts]
            outs = [torch.empty_like(base[0]) for base in bases]
            tables = built.tables[: min(len(base) for base in bases)]

            def run() -> None:
                for number, table in enumerate(tables):
                    for part, out in enumerate(outs):
                        merge_packed(self._kernels, out, bases[part][number], table, 0, part)

            self._merge[key] = self._timer(run) / len(tables)
        return self._merge[key]


def measure(case: Case, pool: Pool, kernels: KernelLibrary, baselines: Baselines, copy: float, timer: Timer) -> Result:
    """Measures one case."""
    built = build(case, pool)
    us = timer(lambda: built.launch_all(kernels)) / len(built.tables)
    dense = case.deltas * baselines.dense(case)
    merge = dense + case.deltas * baselines.merge(case)
    loop = timer(lambda: built.launch_one_by_one(kernels)) / len(built.tables)
    gbs = built.packed_bytes / us / 1e3
    return Result(case, built.packed_bytes, us, gbs, gbs / copy, dense, merge, loop)


def sweep(options: argparse.Namespace, pool: Pool, kernels: KernelLibrary, copy: float, timer: Timer) -> list[Result]:
    """Measures all cases that were asked for."""
    baselines = Baselines(pool, kernels, timer)
    results = []
    print(HEADER)
    for model in options.models:
        for linear in MODELS[model]:
            for codec in options.codecs:
                for deltas in options.deltas:
                    for rows in options.rows:
                        case = Case(model, linear, codec, deltas, rows)
                        results.append(measure(case, pool, kernels, baselines, copy, timer))
                        print(results[-1].line(), flush=True)
    return results


def empty_plan(pool: Pool, kernels: KernelLibrary, timer: Timer) -> float:
    """Returns the microseconds of a launch with nothing to do, within a graph."""
    built = build(Case("8b", "o", "sign1", 0, 1), pool)
    return timer(lambda: [built.launch_all(kernels) for _ in range(100)]) / 100 / len(built.tables)


def rate(case: Case, pool: Pool, kernels: KernelLibrary, tuning: Tuning) -> float:
    """Returns GB/s of packed bytes."""
    built = build(case, pool, tuning)
    return built.packed_bytes * len(built.tables) / graph_microseconds(lambda: built.launch_all(kernels)) / 1e3


def tune(options: argparse.Namespace, pool: Pool, copy: float) -> list[dict[str, object]]:
    """Prints how near each way to compile comes to the copy's rate, for a choice of cases."""
    found: list[dict[str, object]] = []
    shapes = [
        ("o", 1, 1),
        ("o", 8, 1),
        ("o", 32, 1),
        ("gate_up", 1, 8),
        ("gate_up", 8, 1),
        ("gate_up", 4, 16),
        ("down", 8, 4),
    ]
    print(f"{'':<58}" + "".join(f"{f'{linear} {d}x{r}':>13}" for linear, d, r in shapes))
    for tuning in TUNINGS:
        kernels = CudaKernels(defines=tuning.defines)
        with kernels.stream(torch.cuda.current_stream()):
            for codec in options.codecs[:3]:
                cases = [Case("8b", linear, codec, deltas, rows) for linear, deltas, rows in shapes]
                rates = [rate(case, pool, kernels, tuning) / copy for case in cases]
                found.append({"tuning": asdict(tuning), "codec": codec, "of_copy": rates})
                name = (
                    f"{tuning.warps} warps, {tuning.stages} stages, x {tuning.x_bytes}, L2 {tuning.l2_prefetch} {codec}"
                )
                print(f"{name:<58}" + "".join(f"{100 * found_rate:>12.1f}%" for found_rate in rates), flush=True)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cases of Llama-8B")
    parser.add_argument("--tune", action="store_true", help="compare ways to compile sbmm instead")
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    parser.add_argument("--codecs", nargs="+", choices=list(CODECS))
    parser.add_argument("--deltas", nargs="+", type=int)
    parser.add_argument("--rows", nargs="+", type=int, help="of each delta")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    short = options.quick or options.tune
    options.models = options.models or (["8b"] if short else list(MODELS))
    options.codecs = options.codecs or (["sign1", "int2", "int4"] if short else list(CODECS))
    options.deltas = options.deltas or ([1, 4, 32] if short else [1, 2, 4, 8, 16, 32, 64])
    options.rows = options.rows or ([1, 8, 16] if short else [1, 2, 4, 8, 16])
    return options


def main() -> None:
    options = parse()
    try:
        kernels = CudaKernels()
    except PreconditionError as error:
        raise SystemExit(error.message) from error
    print(describe("cuda"))
    kernels.warm_up()
    found: dict[str, object] = {"hardware": describe("cuda"), "torch": torch.__version__}
    side = torch.cuda.Stream()  # the default stream cannot be captured
    with torch.cuda.stream(side), kernels.stream(side):
        pool = Pool(POOL_BYTES, kernels.device)
        copy = copy_rate()
        found["copy_gbs"] = copy
        print(f"device copy: {copy:.0f} GB/s, read and written")
        if options.tune:
            found["tune"] = tune(options, pool, copy)
        else:
            found["empty_plan_us"] = empty_plan(pool, kernels, graph_microseconds)
            print(f"empty plan: {found['empty_plan_us']:.2f} us a launch")
            found["decoding"] = measure_decoding(kernels, pool, copy, graph_microseconds)
            found["results"] = [asdict(result) for result in sweep(options, pool, kernels, copy, graph_microseconds)]
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
