"""What is sent and when: a schedule made from a description and a seed, before anything runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from deltaserve.bench import arrivals, popularity
from deltaserve.bench.lengths import Lengths
from deltaserve.errors import InvalidArgumentError

Popularity = Literal["uniform", "zipf", "azure"]


class Planned(msgspec.Struct, frozen=True, rename={"at": "timestamp"}, omit_defaults=True):
    """One request of a schedule; as JSON a line of a trace file, with the keys of the published traces.

    Attributes:
        at: seconds from the start at which it is due.
        model: whom it asks.
        prompt: text or token ids.
        max_tokens: most tokens of the answer; `min_tokens` the fewest.
        ignore_eos: go on past the end that the model would make.
        cancel_after: leave once so many tokens have come; None stays to the end.
    """

    at: float
    model: str
    prompt: str | list[int]
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    cancel_after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A description of load.

    Attributes:
        models: whom to ask, the most popular first for `zipf`.
        rate: requests a second over all models.
        seconds: how long requests go on being sent.
        cv: coefficient of variation of the gaps between them: 1 is Poisson, more is burstier.
        most: at most so many requests; None for no limit.
        popularity: how requests spread over models; `exponent` is Zipf's.
        prompt_tokens, output_tokens: lengths.
        token_ids: prompts are drawn from this range of ids, both ends included, each by itself, so that no prefix is
            shared by more than chance.
        prompts: texts to draw from instead.
        until_eos: let models end answers; otherwise answers are exactly as long as drawn.
        cancelled: share of requests whose client leaves after a part of the answer.
        seed: of all chance. Each aspect has a stream of its own: other lengths come at the same times.
    """

    models: tuple[str, ...]
    rate: float
    seconds: float
    prompt_tokens: Lengths
    output_tokens: Lengths
    cv: float = 1.0
    most: int | None = None
    popularity: Popularity = "uniform"
    exponent: float = 1.5
    token_ids: tuple[int, int] = (16, 255)
    prompts: tuple[str, ...] = ()
    until_eos: bool = False
    cancelled: float = 0.0
    seed: int = 0


def plan(load: Workload) -> list[Planned]:
    """Returns the schedule, by time. Raises InvalidArgumentError when there is nobody to ask or no request to send."""
    if not load.models:
        raise InvalidArgumentError("no models to ask; name them, or publish some", field="models")
    times = arrivals.renewal(chance(load.seed, "arrivals"), load.rate, load.cv, load.seconds, load.most)
    if not times:
        raise InvalidArgumentError(
            f"no request falls into {load.seconds:g} s at {load.rate:g} a second; raise one of them", field="rate"
        )
    names = chance(load.seed, "models").choices(load.models, weights(load), k=len(times))
    prompts, outputs = chance(load.seed, "prompts"), chance(load.seed, "outputs")
    planned = []
    for at, model in zip(times, names, strict=True):
        tokens = load.output_tokens.draw(outputs)
        fewest = 0 if load.until_eos else tokens
        planned.append(Planned(at, model, _prompt(load, prompts), tokens, fewest, not load.until_eos))
    return leave_early(planned, load.cancelled, chance(load.seed, "cancelled"))


def weights(load: Workload) -> list[float]:
    """Returns how often each model is asked for, relative to the others."""
    if load.popularity == "zipf":
        return popularity.zipf(len(load.models), load.exponent)
    if load.popularity == "azure":
        return popularity.azure(len(load.models), chance(load.seed, "popularity"))
    return popularity.uniform(len(load.models))


def leave_early(planned: Sequence[Planned], share: float, rng: random.Random) -> list[Planned]:
    """Returns requests of which `share` are left by their clients, after any number of tokens short of all."""
    found = []
    for one in planned:
        # one draw each whatever the length, so that other lengths leave the choice of requests alone
        leaves, after = rng.random() < share, 1 + int(rng.random() * max(1, one.max_tokens - 1))
        found.append(msgspec.structs.replace(one, cancel_after=after) if leaves else one)
    return found


def chance(seed: int, aspect: str) -> random.Random:
    """Returns the stream of chance for one aspect of a schedule."""
    return random.Random(f"{seed}/{aspect}")  # noqa: S311 - a schedule, not a secret


def _prompt(load: Workload, rng: random.Random) -> str | list[int]:
    if load.prompts:
        return rng.choice(load.prompts)
    least, most = load.token_ids
    return rng.choices(range(least, most + 1), k=load.prompt_tokens.draw(rng))
