"""All requests of a worker: each is a task that prepares it, hands it to the engine and waits for its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time

from opentelemetry.trace import Span, SpanKind

from deltaserve import genai, telemetry
from deltaserve.errors import DeltaServeError, DrainingError, InternalError, UnavailableError, WorkerLostError
from deltaserve.v1.worker_pb2 import Submit
from services.worker.front.deltas import Arrival, Deltas
from services.worker.front.outbox import Outbox
from services.worker.front.phases import phases
from services.worker.front.prompt import Prepared, make_choice, prepare
from services.worker.front.request import Request, deadline_error, earliest
from services.worker.front.revisions import Revision, Revisions
from services.worker.front.supervisor import Supervisor
from services.worker.messages import Abort, Add, Pause, Step
from services.worker.metrics import WorkerMetrics

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.25  # between two LOADING frames
_SERVICE_WEIGHT = 0.05  # of one more request in the mean service time
_numbers = itertools.count(1)  # of requests and of the engine's sequences


class Requests:
    """The requests that are running or waiting, of all sessions."""

    def __init__(
        self,
        worker: str,
        supervisor: Supervisor,
        revisions: Revisions,
        deltas: Deltas,
        max_logprobs: int | None,
        metrics: WorkerMetrics,
    ) -> None:
        """Serves as `worker`, with the engine of `supervisor`; `max_logprobs` bounds top_logprobs, None does not."""
        self._worker = worker
        self._metrics = metrics
        self._supervisor = supervisor
        self._revisions = revisions
        self._deltas = deltas
        self._max_logprobs = max_logprobs
        self.service_seconds: float | None = None  # mean time from a request's first step to its end
        self._tasks: dict[asyncio.Task[None], Request] = {}
        self._sequences: dict[int, Request] = {}  # by the engine's sequence number

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def unsent(self) -> int:
        """Requests that the engine does not have yet."""
        return sum(not request.choices for request in self._tasks.values())

    def start(self, submit: Submit, outbox: Outbox) -> tuple[Request, asyncio.Task[None]]:
        """Begins to serve a request; cancelling the task aborts it without an answer."""
        request = Request(next(_numbers), submit, outbox, self._worker)
        task = asyncio.create_task(self._serve(request))
        self._tasks[task] = request
        task.add_done_callback(self._tasks.pop)
        return request, task

    def refuse(self, submit: Submit, outbox: Outbox, error: DeltaServeError) -> None:
        """Answers a request that is not to be served."""
        outbox.fail(next(_numbers), submit.request_id, error)

    def take(self, step: Step) -> None:
        """Hands a step's outputs to their requests; those of requests that have gone are ignored."""
        now = time.monotonic()
        if step.began:
            self._metrics.step(now - step.began)
        for output in step.outputs:
            request = self._sequences.get(output.sequence)
            if request is None:
                continue
            try:
                superfluous = request.take(output.sequence, output, now, step.began or now)
            except Exception as error:  # one request's text must not end all others
                log.exception("output of request %s could not be handled", request.id)
                request.fail(InternalError(f"the worker could not handle an output: {type(error).__name__}: {error}"))
                continue
            if superfluous:
                self._supervisor.send(Abort(output.sequence))

    def pause(self, request: Request, paused: bool) -> None:
        """Holds a request back or lets it go on."""
        if request.paused != paused:
            request.paused = paused
            for sequence in request.live:
                self._supervisor.send(Pause(sequence, paused))

    def delta_failed(self, revision: str, error: DeltaServeError) -> None:
        """Ends all requests that wait for a delta."""
        self._revisions.forget(revision)
        for request in self._tasks.values():
            if request.asked_at is not None and request.submit.revision == revision:
                request.fail(error)

    def engine_lost(self, status: int) -> None:
        """Ends all requests: what the engine knew of them is gone."""
        for request in self._tasks.values():
            request.fail(
                WorkerLostError(
                    f"the engine of worker {self._worker} died with status {status}; the request had "
                    f"{request.tokens} output tokens; send it again",
                    tokens_emitted=request.tokens,
                    worker=self._worker,
                )
            )

    def cut_off(self) -> None:
        """Ends all requests because the worker leaves; they may go on elsewhere."""
        for request in self._tasks.values():
            request.fail(
                DrainingError(
                    f"worker {self._worker} is shutting down; the request had {request.tokens} output tokens",
                    tokens_emitted=request.tokens,
                    worker=self._worker,
                )
            )

    async def finish(self, patience_seconds: float) -> bool:
        """Waits until there is no request; returns False when some are left after so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        return not self._tasks

    async def _serve(self, request: Request) -> None:
        try:
            with self._span(request) as span:
                try:
                    await self._within_deadline(request)
                except BaseException as error:
                    self._told(request, span, telemetry.error_type(error, lambda: request.expired(time.monotonic())))
                    raise
                self._told(request, span, "")
        except DeltaServeError as error:
            request.outbox.fail(request.key, request.id, error)
        except Exception as error:  # the outermost frame of a request
            log.exception("request %s failed", request.id)
            failure = InternalError(f"internal error of the worker: {type(error).__name__}: {error}")
            request.outbox.fail(request.key, request.id, failure)
        finally:
            self._note_service(request)
            for sequence in request.live:
                self._supervisor.send(Abort(sequence))
            for sequence in request.choices:
                del self._sequences[sequence]

    def _told(self, request: Request, span: Span, error: str) -> None:
        """Counts a request that ends now, and makes the spans of its phases; one that was cut off failed with it."""
        now = time.monotonic()
        self._metrics.ended(error)
        for name, began, ended, complete, attributes in phases(request, now):
            if complete:
                self._metrics.phase(name, ended - began)
            telemetry.record(name, span, began, ended, attributes, "" if complete else error)
        span.set_attributes(
            {
                genai.INPUT_TOKENS: request.prompt_tokens,
                genai.OUTPUT_TOKENS: request.tokens,
                genai.TIER: genai.tier_name(request.source),
            }
        )

    def _note_service(self, request: Request) -> None:
        if request.prefill_at is not None:
            spent = time.monotonic() - request.prefill_at
            known = spent if self.service_seconds is None else self.service_seconds
            self.service_seconds = known + _SERVICE_WEIGHT * (spent - known)

    def _span(self, request: Request) -> contextlib.AbstractContextManager[Span]:
        asked, revision = request.submit.request, request.submit.revision
        attributes = genai.request_attributes(asked) | {
            genai.RESPONSE_MODEL: revision.partition("@")[0] or asked.model,
            genai.RESPONSE_ID: request.id,
            genai.REVISION: revision,
            genai.WORKER: self._worker,
        }
        parent = request.submit.traceparent or None
        return telemetry.span(
            f"serve {asked.model}", SpanKind.INTERNAL, parent, attributes, lambda: request.expired(time.monotonic())
        )

    async def _within_deadline(self, request: Request) -> None:
        try:
            async with asyncio.timeout(_left(request.deadline)):
                await self._run(request)
        except TimeoutError as error:
            raise deadline_error(request, time.monotonic()) from error

    async def _run(self, request: Request) -> None:
        try:
            # later on, the engine watches over this limit
            async with asyncio.timeout(_left(earliest((request.prefill_deadline, request.deadline)))):
                revision = await self._revisions.get(request.submit.revision)
                prepared = await self._prepare(request, revision)
                request.prepared_at = time.monotonic()
                await self._fetch(request, revision)
        except TimeoutError as error:
            raise deadline_error(request, time.monotonic()) from error
        reporting = asyncio.create_task(self._report(request, request.arrival)) if request.arrival else None
        try:
            if not request.done.done():
                self._add(request, prepared, revision)
            await request.done
        finally:
            if reporting is not None:
                reporting.cancel()

    async def _prepare(self, request: Request, revision: Revision) -> Prepared:
        engine = self._supervisor.engine
        if engine is None:
            raise UnavailableError(f"worker {self._worker} has no engine at the moment")
        return await prepare(request.submit, revision, engine.ready.context_length, self._max_logprobs)

    async def _fetch(self, request: Request, revision: Revision) -> None:
        """Starts the delta's way to memory and waits until its bytes are on disk and the engine loads them."""
        if revision.delta is None:
            return
        request.source = self._deltas.tier(request.submit.revision)
        request.asked_at = time.monotonic()
        request.arrival = arrival = self._deltas.bring(revision.delta)
        if arrival is not None:
            await self._report(request, arrival, until=arrival.on_disk)

    async def _report(self, request: Request, arrival: Arrival, until: asyncio.Event | None = None) -> None:
        """Sends LOADING frames until `until` is set (by default: until the delta is in memory)."""
        until = until or arrival.done
        told = -1
        while not until.is_set() and request.prefill_at is None:
            if arrival.bytes_done != told:
                told = arrival.bytes_done
                request.report_loading(arrival)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROGRESS_SECONDS):
                    await until.wait()

    def _add(self, request: Request, prepared: Prepared, revision: Revision) -> None:
        """Hands all choices to the engine."""
        request.prompt_tokens, request.added_at = len(prepared.prompt), time.monotonic()
        asked = request.submit.request
        if prepared.vocabulary is not None and self._supervisor.engine is not None:
            self._supervisor.engine.teach(prepared.vocabulary)
        for index, (sampling, resume) in enumerate(zip(prepared.sampling, prepared.resume, strict=True)):
            sequence = next(_numbers)
            choice = make_choice(prepared, index, revision, asked.response)
            request.choices[sequence] = choice
            self._sequences[sequence] = request
            request.emit(choice.resume(resume, sampling.max_tokens))
            if choice.finished:
                continue
            add = Add(
                sequence=sequence,
                revision=request.submit.revision,
                prompt=prepared.prompt,
                resume=resume,
                sampling=sampling,
                priority=asked.priority,
                deadline=request.deadline,
                prefill_deadline=request.prefill_deadline,
                grammar=prepared.grammar,
                vocabulary="" if prepared.vocabulary is None else prepared.vocabulary.key,
            )
            self._supervisor.send(add)
            if request.paused:
                self._supervisor.send(Pause(sequence, True))
        ahead = sum(bool(other.choices) and other.prefill_at is None for other in self._tasks.values()) - 1
        if ahead > 0 and not request.done.done() and (request.arrival is None or request.arrival.done.is_set()):
            request.report_queued(ahead)
        request.finish_if_complete(time.monotonic())


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
