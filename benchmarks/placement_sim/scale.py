"""CPU time of one placement decision as fleets and catalogues grow."""

from __future__ import annotations

import random
import time

from services.router.costs import LoadCosts, Tier
from services.router.forecasts import Forecasts
from services.router.placement import decide
from services.router.plan import Demand, Held, Rules, WorkerState

_ROUNDS = 5
_GB = 1_000_000_000


def scale(seed: int) -> None:
    """Prints the median CPU milliseconds of forecasting all models and of deciding."""
    print(f"\n{'workers':>8}{'models':>8}{'forecast ms':>12}{'decide ms':>11}{'both ms':>9}{'orders':>8}")
    for workers, models in ((1, 100), (10, 1000), (50, 1000), (50, 5000), (100, 5000), (100, 10_000)):
        forecasting, deciding, orders = measure(workers, models, seed)
        both = forecasting + deciding
        print(f"{workers:8}{models:8}{forecasting:12.1f}{deciding:11.1f}{both:9.1f}{orders:8}", flush=True)


def measure(workers: int, models: int, seed: int) -> tuple[float, float, int]:
    """Returns median milliseconds of both parts, and the orders of one decision."""
    rng = random.Random(seed)
    names = [f"model-{i}@1" for i in range(models)]
    sizes = {name: rng.randrange(_GB // 2, 2 * _GB) for name in names}
    forecasts, now = Forecasts(0.0), 0.0
    for _ in range(models * 8):
        now += rng.expovariate(10.0)
        forecasts.arrived(names[int(models * rng.random() ** 3)], now)
    fleet = [_worker(f"w{i}", rng, names, sizes) for i in range(workers)]
    times: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        begin = time.process_time()
        known = [(name, forecasts.forecast(name, now, 15.0)) for name in forecasts.names()]
        demands = [Demand(name, sizes[name], f.probability, f.rate) for name, f in known]
        middle = time.process_time()
        decision = decide(demands, fleet, Rules(), LoadCosts())
        times.append((middle - begin, time.process_time() - middle))
        now += 2.0
    first, second = (sorted(column)[_ROUNDS // 2] * 1e3 for column in zip(*times, strict=True))
    return first, second, len(decision.orders)


def _worker(name: str, rng: random.Random, names: list[str], sizes: dict[str, int]) -> WorkerState:
    held, free = {}, 60 * _GB
    while True:
        revision = names[int(len(names) * rng.random() ** 3)]
        if sizes[revision] > free or len(held) > len(names) // 2:
            return WorkerState(name, 60 * _GB, disk_free=400 * _GB, places=64, service_seconds=5.0, held=held)
        if revision not in held:
            held[revision] = Held(Tier.DEVICE, sizes[revision], int(rng.random() < 0.1))
            free -= sizes[revision]
