"""One request on the worker: its choices, its frames, and where its time went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from deltaserve.errors import DeadlineError, DeltaServeError, InternalError, InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1.worker_pb2 import Submit
from services.worker.front.choice import Choice
from services.worker.front.deltas import Arrival
from services.worker.front.outbox import Outbox
from services.worker.messages import Output

_DEADLINE_SLACK = 0.1  # seconds


@dataclass(slots=True, eq=False)
class Request:
    """A request that a router submitted. Times are `time.monotonic()` seconds.

    Attributes:
        key: unique in the process.
        submit: what the router sent.
        outbox: of its session.
        worker: name of this worker.
        arrived: when it came to this worker.
        choices: running and complete ones, by the engine's sequence number.
        prompt_tokens: tokens of the prompt.
        prepared_at: when it was checked and tokenized.
        asked_at: when its delta was asked for; None for the base.
        arrival: its delta's way to memory, if it was not there.
        source: where its delta was.
        added_at: when the engine was told.
        prefill_at: when the first step that computed it began.
        paused: whether its client reads too slowly.
        done: when all choices are complete, or the error that ended it.
    """

    key: int
    submit: Submit
    outbox: Outbox
    worker: str
    arrived: float = field(default_factory=time.monotonic)
    choices: dict[int, Choice] = field(default_factory=dict)
    prompt_tokens: int = 0
    prepared_at: float | None = None
    asked_at: float | None = None
    arrival: Arrival | None = None
    source: pb.Tier.ValueType = pb.TIER_UNSPECIFIED
    added_at: float | None = None
    prefill_at: float | None = None
    paused: bool = False
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def id(self) -> str:
        """Its name on the session."""
        return self.submit.request_id

    @property
    def born(self) -> float:
        """When it arrived at the router, by this process's clock."""
        return self.arrived - _seconds(self.submit.age)

    @property
    def deadline(self) -> float | None:
        """When the client's deadline passes."""
        if not self.submit.HasField("remaining_ms"):
            return None
        return self.arrived + self.submit.remaining_ms / 1000

    def expired(self, now: float) -> bool:
        """Whether the deadline has passed; the router's clock may say so a moment before ours."""
        return self.deadline is not None and now >= self.deadline - _DEADLINE_SLACK

    @property
    def prefill_deadline(self) -> float | None:
        """When max_queue_wait has passed."""
        asked = self.submit.request
        if not asked.HasField("max_queue_wait"):
            return None
        wait = _seconds(asked.max_queue_wait)
        if wait < 0:
            raise InvalidArgumentError(f"max_queue_wait is {wait:g} s; expected 0 or more", field="max_queue_wait")
        return self.born + wait

    @property
    def live(self) -> list[int]:
        """Sequences that the engine still has."""
        return [sequence for sequence, choice in self.choices.items() if not choice.finished]

    @property
    def tokens(self) -> int:
        """Tokens generated, over all choices."""
        return sum(choice.tokens for choice in self.choices.values())

    def emit(self, frames: list[pb.GenerateResponse]) -> None:
        """Sends frames."""
        self.outbox.emit(self.key, self.id, frames)

    def report_queued(self, ahead: int) -> None:
        """Tells the client that others are before it in the engine."""
        self.emit([_progress(pb.Progress(stage=pb.STAGE_QUEUED, position=ahead, worker=self.worker))])

    def report_loading(self, arrival: Arrival) -> None:
        """Tells the client how far its delta is."""
        eta = arrival.eta_seconds(time.monotonic())
        progress = pb.Progress(
            stage=pb.STAGE_LOADING,
            bytes_done=arrival.bytes_done,
            bytes_total=arrival.bytes_total,
            worker=self.worker,
            eta=None if eta is None else _duration(eta),
        )
        self.emit([_progress(progress)])

    def take(self, sequence: int, output: Output, now: float, began: float) -> bool:
        """Takes an output, for one of its choices, of a step that began at `began`.

        Returns:
            Whether the engine must be told to stop the sequence.
        """
        if self.done.done():
            return False
        frames = []
        if output.prefill_started and self.prefill_at is None:
            self.prefill_at = began
            frames.append(_progress(pb.Progress(stage=pb.STAGE_PREFILL, worker=self.worker)))
        if output.finish in {"deadline", "error"}:
            self.emit(frames)
            self.fail(self._error(output, now))
            return False
        choice = self.choices[sequence]
        self.emit(frames + choice.take(output, now))
        self.finish_if_complete(now)
        return choice.finished and not output.finish

    def finish_if_complete(self, now: float) -> None:
        """Sends the Summary once no choice runs."""
        if not self.live and not self.done.done():
            self.emit([pb.GenerateResponse(summary=self._summary(now))])
            self.done.set_result(None)

    def fail(self, error: DeltaServeError) -> None:
        """Ends the request in an error, unless it has ended."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever serves the request may have gone already: no complaint about that

    def _error(self, output: Output, now: float) -> DeltaServeError:
        if output.finish == "error":
            return InternalError(f"the engine gave up on the request: {output.error}")
        return deadline_error(self, now)

    def _summary(self, now: float) -> pb.Summary:
        return pb.Summary(
            usage=pb.Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.tokens),
            timings=self._timings(now),
            source_tier=self.source,
            worker=self.worker,
            seed=self.submit.seed,
        )

    def _timings(self, now: float) -> pb.Timings:
        spans = [(c.first_token_at, c.last_token_at, c.fresh_tokens) for c in self.choices.values()]
        firsts = [first for first, _, _ in spans if first is not None]
        gaps = sum(count - 1 for _, _, count in spans if count > 1)
        decoding = sum(last - first for first, last, _ in spans if first is not None and last is not None)
        loaded = now if self.arrival is None or self.arrival.finished is None else self.arrival.finished
        waited = loaded - self.asked_at if self.arrival is not None and self.asked_at is not None else 0.0
        return pb.Timings(
            queue=_duration((self.prefill_at or now) - self.born),
            load=_duration(waited),
            time_to_first_token=_duration(min(firsts, default=now) - self.born),
            inter_token=_duration(decoding / gaps if gaps else 0.0),
            total=_duration(now - self.born),
        )


def deadline_error(request: Request, now: float) -> DeadlineError:
    """Returns the error of a request whose time is up, saying which limit it was."""
    if request.prefill_at is None and request.prefill_deadline is not None and now >= request.prefill_deadline:
        wait = _seconds(request.submit.request.max_queue_wait)
        return DeadlineError(f"max_queue_wait of {wait:g} s passed before the prompt's computation began")
    return DeadlineError(
        f"the deadline passed after {now - request.born:.3f} s and {request.tokens} output tokens",
        tokens_emitted=request.tokens,
    )


def earliest(times: Iterable[float | None]) -> float | None:
    """Returns the earliest of the times that are set."""
    return min((t for t in times if t is not None), default=None)


def _progress(progress: pb.Progress) -> pb.GenerateResponse:
    return pb.GenerateResponse(progress=progress)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, int(seconds * 1e9)))
    return duration
