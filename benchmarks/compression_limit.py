"""How far presets are from what any code could do: rate and distortion, with the costs that the compressor predicts.

Of every coded tensor the profile knows what noise in it costs. Codes of R bits a weight leave at least 2^(-2R) of the
energy of Gaussian weights (Shannon 1959), and scaled without bias, as shrinkage adds up over layers, the noise is
1/(2^(2R) - 1) of it. Dividing the bits over the tensors so that the sum is least gives the limit: no code of Gaussian
weights, however long, has a lower predicted KL at that size. Deltas that are not Gaussian (rows that hold most of the
energy, common directions) can be coded better than that.

    .venv/bin/python -m benchmarks.compression_limit --zoo ../shared/zoo

Prints by fine-tune and bits a coded weight: the limit, what allocation reaches, the ratio, and what it reaches without
vector codes.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.compression_methods.data import read_samples
from benchmarks.hardware import describe
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.codecs.vector import VECTORS
from services.compressor.pipeline.allocation import Candidate, cost, stored, under_budget
from services.compressor.pipeline.choices import Chooser
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.profile import Profiler, profiled_batches
from services.compressor.pipeline.progress import Progress

BITS = (1.03, 1.93, 3.9)  # what tiny, balanced and faithful leave a coded weight of the zoo's fine-tunes
_NOISE = 0.3224 / (1 - 0.3224)  # of `vector8`: docs/adr/0009-vector-codes.md
_MOST = 16.0  # bits

Table = Mapping[str, Sequence[Candidate]]


@torch.no_grad()
def profile(base: Path, tuned: Path) -> Table:
    """Returns the candidates of every tensor of a fine-tune, as a run with calibration on its train.jsonl has them."""
    pair = Pair(Checkpoint.open(base), Checkpoint.open(tuned), torch.device("cpu"))
    decoder = Decoder(pair.tuned.config, pair.device)
    _, samples = read_samples(pair, decoder, tuned / "train.jsonl")
    with tempfile.TemporaryDirectory() as work:
        profiler = Profiler(pair, decoder, Memory(1 << 30), Path(work), Chooser("int4", "int4", 128), ())
        return profiler.make(*profiled_batches(samples), Progress(io.StringIO())).table


def limit(noise_costs: Mapping[str, float], weights: Mapping[str, float], bits: float) -> float:
    """Returns the least predicted KL of Gaussian weights coded with so many bits each on average.

    Args:
        noise_costs: by tensor, the KL of noise as large as its delta.
        weights: by tensor, how many.
        bits: the budget, bits a weight.
    """
    low, high = 1e-18, 1e6  # prices of a bit
    for _ in range(100):
        price = math.sqrt(low * high)
        rates = {name: _rate(noise, price * weights[name]) for name, noise in noise_costs.items()}
        if sum(weights[name] * rate for name, rate in rates.items()) > bits * sum(weights.values()):
            low = price
        else:
            high = price
    return sum(noise / math.expm1(math.log(4) * rates[name]) for name, noise in noise_costs.items() if noise > 0)


def _rate(noise: float, price: float) -> float:
    """Returns the bits R at which a further bit saves as much KL as it is priced: x/(x-1)² = price/(noise ln 4)."""
    if noise <= 0:
        return 0.0
    ratio = price / (noise * math.log(4))
    power = 1 + (1 + math.sqrt(1 + 4 * ratio)) / (2 * ratio)  # x = 4^R
    return min(_MOST, math.log(power, 4))


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with base/ and the fine-tunes")
    parser.add_argument("--models", help="fine-tunes, comma-separated; all of the zoo's by default")
    arguments = parser.parse_args()
    found = sorted(one.parent.name for one in arguments.zoo.glob("*/train.jsonl"))
    print(f"# {describe()}\n{'model':12} {'bits':>5} {'limit':>9} {'reached':>9} {'ratio':>6} {'no vectors':>11}")
    for model in arguments.models.split(",") if arguments.models else found:
        table = profile(arguments.zoo / "base", arguments.zoo / model)
        coded = {name: next(c for c in all_ if c.choice.codec == VECTORS[0].name) for name, all_ in table.items()}
        weights = {name: 8.0 * one.bytes for name, one in coded.items()}  # scales count as a few weights more
        plain = {name: [c for c in all_ if "vector" not in c.choice.codec] for name, all_ in table.items()}
        for bits in BITS:
            budget = int(bits * sum(weights.values()) / 8)
            least = limit({name: one.cost / _NOISE for name, one in coded.items()}, weights, bits)
            reached, without = under_budget(table, budget), under_budget(plain, budget)
            fits = f"{cost(without):11.5f}" if stored(without) <= budget else f"{'-':>11}"
            print(f"{model:12} {bits:5.2f} {least:9.5f} {cost(reached):9.5f} {cost(reached) / least:6.2f} {fits}")


if __name__ == "__main__":
    main()
