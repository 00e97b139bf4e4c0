"""What a set of requests comes to: throughput over its makespan, latencies, objectives. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from deltaserve.bench.percentiles import Distribution, distribution
from deltaserve.bench.records import CANCELLED, OK, Record


class Objectives(msgspec.Struct, frozen=True):
    """Service level objectives in seconds; None sets none.

    Attributes:
        ttft: until the first token, from when the request was due.
        inter_token: of the mean time between tokens after the first.
        e2e: until the end, from when the request was due.
    """

    ttft: float | None = None
    inter_token: float | None = None
    e2e: float | None = None


class Figures(msgspec.Struct):
    """Requests of one model or of all. `requests` is `ok` + `cancelled` + the sum of `errors`.

    Attributes:
        requests: that were due.
        ok: answered to the end; `cancelled`: left by the client as planned; `errors`: others, by status.
        prompt_tokens, output_tokens: of requests that did not fail.
        tokens_of_failed: output that came before a failure; in no rate.
        seconds: makespan, from when the first was due to the end of the last.
        request_rate: ok requests a second; `output_rate`, `prompt_rate`: tokens a second.
        goodput: requests a second that met every objective; None when none is set.
        attainment: share of requests that met an objective, by its name, and `all` of them; those that failed did not,
            those that were cancelled are not counted.
        ttft: of requests that had a token before they ended or were left; `e2e`: of ok ones.
        inter_token: gaps between one frame with tokens and the next, as a reader sees them, over all requests that did
            not fail; `frame_tokens` is the mean of tokens a frame, 1 where none were merged.
        per_token: mean time a token after the first, request by request.
        tiers: ok requests by where the server had their delta, where it told; `load` are seconds they waited for it.
    """

    requests: int
    ok: int
    cancelled: int
    errors: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    tokens_of_failed: int
    seconds: float
    request_rate: float
    output_rate: float
    prompt_rate: float
    goodput: float | None
    attainment: dict[str, float]
    ttft: Distribution
    inter_token: Distribution
    per_token: Distribution
    e2e: Distribution
    frame_tokens: float
    tiers: dict[str, int]
    load: Distribution


def figures(records: Sequence[Record], objectives: Objectives) -> Figures:
    """Returns the figures of records, of which there is at least one."""
    ok = [r for r in records if r.status == OK]
    cancelled = [r for r in records if r.status == CANCELLED]
    good = [*ok, *cancelled]
    seconds = max(r.ended for r in records) - min(r.due for r in records)
    prompt_tokens, output_tokens = sum(r.prompt_tokens for r in good), sum(r.output_tokens for r in good)
    errors = Counter(r.status for r in records if r.status not in {OK, CANCELLED})
    attainment, met_all = _attainment([r for r in records if r.status != CANCELLED], objectives)
    frames = sum(len(r.times) for r in good if r.frames)
    return Figures(
        requests=len(records),
        ok=len(ok),
        cancelled=len(cancelled),
        errors=dict(sorted(errors.items())),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        tokens_of_failed=sum(r.output_tokens for r in records) - output_tokens,
        seconds=seconds,
        request_rate=_rate(len(ok), seconds),
        output_rate=_rate(output_tokens, seconds),
        prompt_rate=_rate(prompt_tokens, seconds),
        goodput=_rate(met_all, seconds) if attainment else None,
        attainment=attainment,
        ttft=distribution(first_tokens(good)),
        inter_token=distribution(gaps(good)),
        per_token=distribution(r.per_token for r in good if r.per_token is not None),
        e2e=distribution(r.e2e for r in ok),
        frame_tokens=_rate(output_tokens, frames),
        tiers=dict(sorted(Counter(r.tier for r in ok if r.tier).items())),
        load=distribution(r.load for r in ok if r.tier),
    )


def first_tokens(records: Sequence[Record]) -> Iterator[float]:
    """Yields the times to the first token of records that have one."""
    return (r.ttft for r in records if r.ttft is not None)


def gaps(records: Sequence[Record]) -> Iterator[float]:
    """Yields the times between a frame with tokens and the next, request by request."""
    for record in records:
        times = record.times.tolist() if record.frames else []
        yield from (later - earlier for earlier, later in pairwise(times))


def meets(record: Record, objectives: Objectives) -> dict[str, bool]:
    """Returns whether a request met each objective that is set; a mean between tokens that has no gap is met."""
    answered = record.status == OK
    told: dict[str, bool] = {}
    if objectives.ttft is not None:
        told["ttft"] = answered and record.ttft is not None and record.ttft <= objectives.ttft
    if objectives.inter_token is not None:
        told["inter_token"] = answered and (record.per_token or 0.0) <= objectives.inter_token
    if objectives.e2e is not None:
        told["e2e"] = answered and record.e2e <= objectives.e2e
    return told


def _attainment(records: Sequence[Record], objectives: Objectives) -> tuple[dict[str, float], int]:
    """Returns the share that met each objective and all, and how many met all."""
    told = [meets(record, objectives) for record in records]
    if not told or not told[0]:
        return {}, 0
    met_all = sum(all(one.values()) for one in told)
    shares = {name: sum(one[name] for one in told) / len(told) for name in told[0]}
    return shares | {"all": met_all / len(told)}, met_all


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
