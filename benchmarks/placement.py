"""How often a request finds its delta in memory: eviction and prefetch policies on one simulated worker, by trace.

    python -m benchmarks.placement                 # the table: LRU, LFU, GDSF, ours, an oracle
    python -m benchmarks.placement --horizons      # ours by horizon and least probability
    python -m benchmarks.placement --scale         # CPU time of one decision, up to 100 workers x 10,000 models

Deltas of 0.4 to 2 GB come from disk at 1 GB/s through one loader; a request uses its delta for 5 s; the router decides
every 2 s. `cold` is seconds that requests waited for deltas, `wasted` the share of prefetched bytes that left unused.
The oracle evicts what is used last and loads what is used next whenever the loader is free.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.hardware import describe
from benchmarks.placement_sim import arrivals
from benchmarks.placement_sim.arrivals import DAY, Trace
from benchmarks.placement_sim.memory import Outcome, Policy, simulate
from benchmarks.placement_sim.policies import Gdsf, Lfu, Lru, Oracle, Ours
from benchmarks.placement_sim.scale import scale
from services.router.plan import Rules

HOUR = 3600.0
SHARED = Path(__file__).parents[2] / "shared" / "traces"
POLICIES: dict[str, Callable[[Trace], Policy]] = {
    "LRU": lambda _: Lru(),
    "LFU, fading": lambda _: Lfu(),
    "GDSF": lambda _: Gdsf(),
    "ours, eviction only": lambda _: Ours(prefetch=False),
    "ours": lambda _: Ours(),
    "Belady, no prefetch": lambda trace: Oracle(trace, prefetch=False),
    "oracle": Oracle,
}


def traces(shared: Path, seed: int) -> list[Trace]:
    """Returns the published traces, if they are there, and generated ones."""
    found = [arrivals.published(path) for path in sorted(shared.glob("azure*.jsonl"))]
    return [
        *found,
        arrivals.mixed(150, 1.0, 6 * HOUR, seed),
        arrivals.zipf(150, 1.0, 3 * HOUR, seed),
        arrivals.uniform(150, 1.0, 3 * HOUR, seed),
        arrivals.timers(150, 0.5, 6 * HOUR, seed),
        arrivals.bursts(150, 0.5, 6 * HOUR, seed),
        arrivals.daily(60, 0.1, 3 * DAY, seed),
    ]


def sizes_of(trace: Trace, seed: int) -> list[int]:
    """Returns the bytes of each model's delta."""
    rng = random.Random(seed)
    return [int(rng.uniform(0.4e9, 2e9)) for _ in range(trace.models)]


def run(trace: Trace, policy: Policy, share: float, seed: int) -> Outcome:
    """Simulates a trace with memory for `share` of all deltas, at least three."""
    sizes = sizes_of(trace, seed)
    warm_up = 0.1 if len(trace.events) > 1000 else 0.0
    return simulate(trace, sizes, max(int(share * sum(sizes)), 6_000_000_000), policy, warm_up)


def table(shared: Path, share: float, seed: int) -> None:
    """Prints each policy on each trace beside the oracle."""
    for trace in traces(shared, seed):
        print(f"\n{trace.name}: {trace.models} models, {len(trace.events)} requests in {trace.seconds:,.0f} s")
        print(f"{'':22}{'hit rate':>9}{'/ oracle':>9}{'cold s':>9}{'loaded GB':>11}{'prefetched':>11}{'wasted':>8}")
        found = {name: run(trace, make(trace), share, seed) for name, make in POLICIES.items()}
        best = found["oracle"].hit_rate
        for name, o in found.items():
            wasted = f"{o.wasted / o.prefetched:8.0%}" if o.prefetched else f"{'–':>8}"
            print(
                f"{name:22}{o.hit_rate:9.3f}{o.hit_rate / best:9.2f}{o.cold_seconds:9,.0f}"
                f"{o.loaded / 1e9:11,.0f}{o.prefetched / 1e9:11,.0f}{wasted}",
                flush=True,
            )


def horizons(shared: Path, share: float, seed: int) -> None:
    """Prints hit rates of ours by horizon (eviction and prefetch) and by least probability."""
    chosen = [t for t in traces(shared, seed) if t.name in {"azure-like", "zipf 1.5", "timers"}]
    print(f"\n{'horizon':>8}{'least p':>8}" + "".join(f"{t.name:>20}" for t in chosen) + "   (hit rate, wasted)")
    for horizon in (15.0, 30.0, 60.0, 300.0):
        for probability in (0.1, 0.2, 0.4):
            cells = []
            for trace in chosen:
                o = run(trace, Ours(horizon, rules=Rules(prefetch_probability=probability)), share, seed)
                cells.append(f"{o.hit_rate:14.3f}{o.wasted / max(1, o.prefetched):6.0%}")
            print(f"{horizon:8.0f}{probability:8.2f}" + "".join(cells), flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=SHARED, help="folder of the published traces")
    parser.add_argument("--share", type=float, default=0.2, help="memory, as a share of the bytes of all deltas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--horizons", action="store_true")
    parser.add_argument("--scale", action="store_true")
    options = parser.parse_args()
    print(describe())
    if options.scale:
        scale(options.seed)
    elif options.horizons:
        horizons(options.traces, options.share, options.seed)
    else:
        table(options.traces, options.share, options.seed)


if __name__ == "__main__":
    main()
