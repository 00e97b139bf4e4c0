"""Where a request's time on the worker went, from the times that are taken on its way. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from opentelemetry.util.types import AttributeValue

from deltaserve import genai
from deltaserve.v1 import inference_pb2 as pb
from services.worker.front.deltas import Arrival
from services.worker.front.request import Request

PREPARE, FETCH, LOAD, QUEUE, PREFILL, DECODE = "prepare", "delta fetch", "delta decode", "queue", "prefill", "decode"


class Phase(NamedTuple):
    """One stretch of a request's time.

    Attributes:
        name: of the phase.
        began: `time.monotonic()` seconds.
        ended: likewise; when the request ended, for a phase that did not come to its end.
        complete: whether it did.
        attributes: of its span.
    """

    name: str
    began: float
    ended: float
    complete: bool
    attributes: dict[str, AttributeValue]


def phases(request: Request, now: float) -> Iterator[Phase]:
    """Returns the phases of a request that ends now, in order. They follow each other, with small gaps at most."""
    yield _phase(PREPARE, request.arrived, request.prepared_at, now)
    if request.arrival is not None and request.asked_at is not None:
        yield from _delta(request.arrival, request.asked_at, request.prefill_at, now)
    if request.added_at is None:
        return
    ready = request.added_at
    if request.arrival is not None:
        if request.arrival.finished is None and request.prefill_at is None:
            return  # its delta never came
        ready = max(ready, request.arrival.finished or ready)
    yield _phase(QUEUE, min(ready, request.prefill_at or now), request.prefill_at, now)
    if request.prefill_at is None:
        return
    choices = request.choices.values()
    first = min((c.first_token_at for c in choices if c.first_token_at is not None), default=None)
    last = max((c.last_token_at for c in choices if c.last_token_at is not None), default=None)
    yield _phase(PREFILL, request.prefill_at, first, now, {genai.INPUT_TOKENS: request.prompt_tokens})
    if first is not None:
        gap = max(c.longest_gap for c in choices)
        about: dict[str, AttributeValue] = {genai.OUTPUT_TOKENS: request.tokens, genai.LONGEST_GAP: round(gap, 6)}
        yield _phase(DECODE, first, None if request.live else last, now, about)


def _delta(arrival: Arrival, asked: float, prefill: float | None, now: float) -> Iterator[Phase]:
    """The way of a delta, as far as the request waited for it: another may have begun it."""
    about: dict[str, AttributeValue] = {
        genai.TIER: genai.tier_name(arrival.source),
        genai.DELTA_BYTES: arrival.bytes_total,
    }
    on_disk = arrival.started + arrival.fetched if arrival.folder is not None else None
    if arrival.source == pb.TIER_STORE and (on_disk is None or on_disk > asked):
        yield _phase(FETCH, max(asked, arrival.started), on_disk, now, about)
    if on_disk is not None:
        # the engine's step may have begun a moment before the news of the delta was here
        ends = [at for at in (arrival.finished, prefill) if at is not None]
        yield _phase(LOAD, max(asked, on_disk), min(ends, default=None), now, about)


def _phase(
    name: str, began: float, ended: float | None, now: float, attributes: dict[str, AttributeValue] | None = None
) -> Phase:
    complete = ended is not None
    return Phase(name, began, max(began, now if ended is None else ended), complete, attributes or {})
