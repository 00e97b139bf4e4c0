"""A request on its way through the router."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Protocol

from opentelemetry.trace import INVALID_SPAN, Span

from deltaserve import genai, telemetry
from deltaserve.errors import DeadlineError, DeltaServeError, WorkerLostError
from deltaserve.v1.inference_pb2 import STAGE_PREFILL, GenerateRequest, GenerateResponse, Summary
from deltaserve.v1.worker_pb2 import Submit
from services.router.admission.estimates import Size
from services.router.admission.fair import Claim
from services.router.admission.keys import ANONYMOUS, Caller
from services.router.outlet import Outlet
from services.router.output import Output
from services.router.pacing import Pacing

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's model resolved to.

    Attributes:
        model: the base's served name, or the fine-tune's.
        revision: `<model>@<revision>`; empty for the base.
        base_fingerprint: of the base it needs.
        delta_bytes: size of the packed delta; 0 for the base.
    """

    model: str
    revision: str
    base_fingerprint: str
    delta_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Limits of one stream: see Outlet."""

    buffer_bytes: int
    patience: float
    pacing: Pacing | None = None


class Carrier(Protocol):
    """The worker that a flight is on."""

    def pause(self, flight: Flight, paused: bool) -> None:
        """Holds the flight back, or lets it go on."""


@dataclass(slots=True, eq=False)
class Flight:
    """One request, from arrival to its last frame; times of the event loop's clock.

    Attributes:
        id: what clients, logs and traces call it.
        target: what to run it on.
        request: the client's request; the flight's own copy.
        seed: of choice 0.
        limits: of its outlet.
        arrived: when it came.
        deadline: of the call; None: none.
        span: of the request.
        caller: whose request it is.
        claim: what it was admitted with; None before.
        wire_id: its name on the Session; new for each attempt, so that late output of another is not taken for it.
        attempts: workers it was sent to.
        output: what went to the outlet.
        prefilled: when the worker began to compute it, as far as is known.
        waiting_since: when it last began to wait here.
        told: position in the queue that its client knows.
        lost: worker that it was on last, and why it is not any more.
        background: whether it is a shadow: no client waits for it, so it is sent once only.
        carrier: the worker it is on; None while it waits here.
        summary: the worker's last frame, once it came.
        outlet: where frames go.
    """

    id: str
    target: Target
    request: GenerateRequest
    seed: int
    limits: InitVar[StreamLimits]
    arrived: float
    deadline: float | None = None
    span: Span = INVALID_SPAN
    caller: Caller = ANONYMOUS
    claim: Claim | None = None
    wire_id: str = ""
    attempts: int = 0
    output: Output = field(default_factory=Output)
    prefilled: float | None = None
    waiting_since: float = 0.0
    told: int | None = None
    lost: tuple[str, DeltaServeError] | None = None
    background: bool = False
    carrier: Carrier | None = None
    summary: Summary | None = None
    outlet: Outlet = field(init=False)
    _clock: asyncio.TimerHandle | None = field(default=None, init=False)

    def __post_init__(self, limits: StreamLimits) -> None:
        flush_seconds = self.request.response.max_flush_ms / 1000
        self.outlet = Outlet(limits.buffer_bytes, limits.patience, flush_seconds, self._pause, limits.pacing)

    @property
    def size(self) -> Size:
        """What is known of how many tokens it takes."""
        request = self.request
        most = request.stopping.max_tokens if request.stopping.HasField("max_tokens") else None
        return Size(len(request.token_ids.ids), _characters(request), most, max(1, request.sampling.n))

    @property
    def patience(self) -> float | None:
        """Time of the loop's clock until which its caller waits for the first prefill; None: for ever."""
        limits = [] if self.deadline is None else [self.deadline]
        if self.request.HasField("max_queue_wait") and self.prefilled is None:
            limits.append(self.arrived + self.request.max_queue_wait.ToTimedelta().total_seconds())
        return min(limits, default=None)

    def watch_queue_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Holds the request to its max_queue_wait, wherever it waits."""
        if self.request.HasField("max_queue_wait"):
            limit = self.request.max_queue_wait.ToTimedelta().total_seconds()
            self._clock = loop.call_at(self.arrived + limit, self._waited_too_long, limit)

    def submission(self, now: float) -> Submit:
        """Returns the message for a worker, under a new wire_id."""
        self.attempts += 1
        self.wire_id = f"{self.id}/{next(_numbers)}"
        message = Submit(
            request_id=self.wire_id,
            revision=self.target.revision,
            request=self.request,
            traceparent=telemetry.traceparent(self.span),
            seed=self.seed,
            resume=self.output.resume(),
        )
        if self.prefilled is not None:
            message.request.ClearField("max_queue_wait")  # was kept the first time
        message.age.FromNanoseconds(int((now - self.arrived) * 1e9))
        if self.deadline is not None:
            message.remaining_ms = max(0, int((self.deadline - now) * 1000))
        return message

    def deliver(self, frames: Sequence[GenerateResponse], now: float) -> bool:
        """Takes frames from the worker; returns True when the last one was among them."""
        if self.prefilled is None and any(_is_computing(frame) for frame in frames):
            self.prefilled = now
            self.stop_clock()
        self.outlet.put([frame for frame in frames if self.output.admit(frame)])
        if not frames or not frames[-1].HasField("summary"):
            return False
        self.summary = frames[-1].summary
        usage, reasons = self.summary.usage, self.output.reasons
        self.span.set_attributes(
            {
                genai.INPUT_TOKENS: usage.prompt_tokens,
                genai.OUTPUT_TOKENS: usage.completion_tokens,
                genai.FINISH_REASONS: [genai.finish_reason(reasons[index]) for index in sorted(reasons)],
            }
        )
        self.outlet.finish()
        return True

    def fail(self, error: DeltaServeError) -> None:
        """Ends the stream with `error` after the frames that wait."""
        self.outlet.finish(error)

    def fail_lost(self, worker: str, why: str) -> None:
        """Ends the stream because its worker is gone and no other goes on with it."""
        tokens = self.output.tokens
        text = f"worker {worker} was lost after {tokens} output tokens: {why}; send the request again"
        self.fail(WorkerLostError(text, tokens_emitted=tokens, worker=worker))

    def stop_clock(self) -> None:
        """Lets go of max_queue_wait."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _pause(self, paused: bool) -> None:
        if self.carrier is not None:
            self.carrier.pause(self, paused)

    def _waited_too_long(self, limit: float) -> None:
        text = f"request {self.id} was not begun within its max_queue_wait of {limit:g} s"
        self.outlet.cut(DeadlineError(text, max_queue_wait_seconds=limit))


def _is_computing(frame: GenerateResponse) -> bool:
    return not frame.HasField("progress") or frame.progress.stage == STAGE_PREFILL


def _characters(request: GenerateRequest) -> int:
    if request.HasField("chat"):
        return sum(len(message.content) + len(message.role) for message in request.chat.messages)
    return len(request.text)
