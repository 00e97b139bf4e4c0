"""Shares and waits under contention: the router's queue against first come first served and turns by requests.

A simulated worker of 16 places that make 40 tokens a second each, five minutes of Poisson arrivals; the queue is the
router's own (services.router.admission.fair). Answers are what they are: the queue expects the mean of the model and is
told the truth at the end.

    .venv/bin/python -m benchmarks.fairness
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from services.router.admission.estimates import Estimates, Size
from services.router.admission.fair import Claim, FairQueue

PLACES, RATE, SECONDS = 16, 40.0, 300.0
CAPACITY = PLACES * RATE


@dataclass(frozen=True)
class Source:
    """Requests of one key for one model.

    Attributes:
        key: who pays.
        model: what for.
        load: tokens a second asked for, relative to what the worker makes.
        tokens: mean of an answer, exponentially spread.
        weight: of the key.
    """

    key: str
    model: str
    load: float
    tokens: float
    weight: float = 1.0


@dataclass
class Request:
    """One request."""

    source: Source
    at: float
    tokens: int
    claim: Claim = field(default_factory=lambda: Claim("", ""))


Policy = Callable[[Request, float], Claim]


def first_come(request: Request, expected: float) -> Claim:  # noqa: ARG001 - a policy
    """One line for all."""
    return Claim("", "", 1.0, expected)


def by_requests(request: Request, expected: float) -> Claim:  # noqa: ARG001 - a policy
    """Fair turns that count requests."""
    return Claim(request.source.key, request.source.model, request.source.weight, 1.0)


def by_tokens(request: Request, expected: float) -> Claim:
    """What the router does."""
    return Claim(request.source.key, request.source.model, request.source.weight, expected)


POLICIES: dict[str, Policy] = {"first come": first_come, "by requests": by_requests, "by tokens": by_tokens}

SCENES: dict[str, list[Source]] = {
    "one key floods": [Source("flood", "m", 3.0, 200), Source("light", "m", 0.2, 200)],
    "equal requests, long and short answers": [Source("long", "m", 2.0, 800), Source("short", "n", 2.0, 50)],
    "weights 3 and 1": [Source("three", "m", 2.0, 200, 3.0), Source("one", "m", 2.0, 200)],
    "a hot and two cold models of a key": [
        Source("k", "hot", 3.0, 200), Source("k", "cold1", 0.2, 200), Source("k", "cold2", 0.1, 200)],
}  # fmt: skip


def simulate(sources: list[Source], policy: Policy, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns each party's share of tokens served while the simulation lasts, and its median wait in seconds."""
    draw = random.Random(seed)
    arrivals = sorted(_arrivals(sources, draw), key=lambda request: request.at)
    queue: FairQueue[Request] = FairQueue()
    estimates, running, now = Estimates(), [], 0.0
    served, waits, number = Counter[str](), defaultdict(list), 0
    while now < SECONDS and (arrivals or running):
        if arrivals and (not running or arrivals[0].at <= running[0][0]):
            request = arrivals.pop(0)
            now = request.at
            size = Size(0, 0, None, 1)
            request.claim = policy(request, estimates.tokens(request.source.model, size))
            queue.push(request, request.claim)
        else:
            now, _, request = heapq.heappop(running)
            if policy is by_tokens:
                queue.settle(request.claim, request.tokens)
            estimates.learn(request.source.model, Size(0, 0, None, 1), 0, request.tokens)
            served[_party(request, sources)] += request.tokens
        while len(running) < PLACES and (head := queue.peek()) is not None:
            queue.serve(head)
            waits[_party(head, sources)].append(now - head.at)
            number += 1
            heapq.heappush(running, (now + head.tokens / RATE, number, head))
    for request in queue:
        waits[_party(request, sources)].append(SECONDS - request.at)  # at least
    total = sum(served.values())
    return {name: count / total for name, count in served.items()}, {
        name: statistics.median(seconds) for name, seconds in waits.items()
    }


def _arrivals(sources: list[Source], draw: random.Random) -> list[Request]:
    found = []
    for source in sources:
        at = 0.0
        while (at := at + draw.expovariate(source.load * CAPACITY / source.tokens)) < SECONDS:
            found.append(Request(source, at, 1 + int(draw.expovariate(1 / source.tokens))))
    return found


def _party(request: Request, sources: list[Source]) -> str:
    keys = {source.key for source in sources}
    return request.source.model if len(keys) == 1 else request.source.key


def main() -> None:
    """Prints shares and waits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    print(f"# {PLACES} places of {RATE:g} tokens/s, {SECONDS:g} s, seed {seed}: share of tokens served (median wait)")
    for scene, sources in SCENES.items():
        asked = ", ".join(f"{s.key}/{s.model} asks {s.load:g}" for s in sources)
        print(f"\n{scene}: {asked} of capacity")
        for name, policy in POLICIES.items():
            shares, waits = simulate(sources, policy, seed)
            parts = [f"{party} {shares.get(party, 0.0):.2f} ({waits[party]:.1f} s)" for party in waits]
            print(f"  {name:12} {'  '.join(sorted(parts))}")


if __name__ == "__main__":
    main()
