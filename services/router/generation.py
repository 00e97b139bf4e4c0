"""The life of a generation at the router, from arrival to its last frame."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from opentelemetry.trace import Span, SpanKind

from deltaserve import genai, telemetry
from deltaserve.errors import AlreadyExistsError, DrainingError, InvalidArgumentError
from deltaserve.v1.inference_pb2 import Accepted, GenerateRequest, GenerateResponse
from services.router.admission.keys import ANONYMOUS, Caller
from services.router.dispatch import Dispatcher
from services.router.flight import Flight, StreamLimits, Target
from services.router.metrics import RouterMetrics
from services.router.pacing import Pacing
from services.router.rates import RateBook
from services.router.settings import RouterSettings
from services.router.shadows import Shadows
from services.router.targets import Targets

_RETRY_SECONDS = 2.0  # after which a client of a draining router finds another
_LONGEST_KEY = 256  # characters

# a client's own clock ends a call at its deadline, and the news of that may be here before ours has
_DEADLINE_SLACK = 0.1

Write = Callable[[GenerateResponse], Awaitable[None]]


@dataclass(slots=True)
class _Counted:
    """What metrics want to know of a request when it ends."""

    flight: Flight | None = None

    @property
    def model_class(self) -> str:
        """Of the model: base, fine_tune, or unknown, where the request was refused before its name was looked up."""
        if self.flight is None:
            return "unknown"
        return "fine_tune" if self.flight.target.revision else "base"


class Generations:
    """Runs generations and knows which are running.

    Attributes:
        pacing: of all streams.
    """

    def __init__(
        self,
        settings: RouterSettings,
        targets: Targets,
        dispatcher: Dispatcher,
        rates: RateBook,
        metrics: RouterMetrics,
    ) -> None:
        self._metrics = metrics
        self.pacing = Pacing()
        self._limits = StreamLimits(settings.buffer_bytes, settings.slow_consumer_seconds, self.pacing)
        self._targets = targets
        self._dispatcher = dispatcher
        self._rates = rates
        self.shadows = Shadows(targets, dispatcher)
        self.tokens_ended = 0  # of all streams that have ended
        self.streams: Counter[str] = Counter()  # by revision, waiting ones included
        self._loop = asyncio.get_running_loop()
        self._running: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False

    def caller(self, authorization: str | None) -> Caller:
        """Returns who sends a request with such an `authorization`; raises UnauthenticatedError."""
        return self._dispatcher.gate.quotas.book.caller(authorization)

    async def run(
        self,
        request: GenerateRequest,
        write: Write,
        remaining: float | None,
        parent: str | None,
        caller: Caller = ANONYMOUS,
    ) -> None:
        """Runs a request until its stream ends; however that happens, its worker is told.

        Args:
            request: the client's request, given away to the router.
            write: takes a frame, and returns when the connection took it.
            remaining: seconds until the call's deadline; None: there is none.
            parent: traceparent of the client.
            caller: whose request it is.

        Raises:
            DeltaServeError: the status the stream ends with.
        """
        arrived = self._loop.time()
        deadline = None if remaining is None else arrived + remaining
        name = f"{genai.operation(request)} {request.model}".strip()
        expired = partial(self._expired, deadline)
        with (
            self._counted(request, arrived, expired) as counted,
            telemetry.span(name, SpanKind.SERVER, parent, genai.request_attributes(request), expired) as span,
        ):
            if self._refusing:
                raise DrainingError("this router is shutting down; send it again", retry_seconds=_RETRY_SECONDS)
            check_request(request)
            with self._claimed(request):
                span.set_attribute(genai.RESPONSE_ID, request.client_request_id)
                target = await self._resolve(request, span)
                counted.flight = flight = Flight(
                    id=request.client_request_id,
                    target=target,
                    request=request,
                    seed=request.sampling.seed if request.sampling.HasField("seed") else secrets.randbits(48),
                    limits=self._limits,
                    arrived=arrived,
                    deadline=deadline,
                    span=span,
                    caller=caller,
                )
                await self._fly(flight, write)

    def refuse(self) -> None:
        """From now on new requests are refused with DrainingError."""
        self._refusing = True

    async def idle(self) -> None:
        """Waits until nothing runs."""
        await self._idle.wait()

    async def _resolve(self, request: GenerateRequest, span: Span) -> Target:
        """Returns what the request's model stands for, and tells the request's span."""
        with telemetry.span("resolve", parent=span, attributes={genai.REQUEST_MODEL: request.model}):
            target = await self._targets.resolve(request.model, request.sticky_key or request.client_request_id)
        span.set_attributes({genai.RESPONSE_MODEL: target.model, genai.REVISION: target.revision})
        return target

    async def _fly(self, flight: Flight, write: Write) -> None:
        model = flight.target.model
        self._rates.arrived(model, self._loop.time())
        flight.watch_queue_wait(self._loop)
        flight.outlet.put([_accepted(flight.id, flight.target)])
        self.streams[flight.target.revision] += 1
        self.shadows.make_room()
        shadow = None
        try:
            self._dispatcher.enter(flight)
            shadow = self.shadows.beside(flight)
            await asyncio.sleep(0)  # the session sends the request before the client hears that it was taken
            await flight.outlet.drain_to(shadow.tapped(write) if shadow else write)
        finally:
            if shadow is not None:
                shadow.client_left()
            self._forget_stream(flight)
            flight.stop_clock()
            self._dispatcher.leave(flight)
            self._rates.ended(model)

    def _forget_stream(self, flight: Flight) -> None:
        revision = flight.target.revision
        self.tokens_ended += flight.output.tokens
        self.streams[revision] -= 1
        if not self.streams[revision]:
            del self.streams[revision]

    def _expired(self, deadline: float | None) -> bool:
        return deadline is not None and self._loop.time() >= deadline - _DEADLINE_SLACK

    @contextmanager
    def _counted(self, request: GenerateRequest, arrived: float, expired: Callable[[], bool]) -> Iterator[_Counted]:
        """Counts the request that the block runs when it ends."""
        counted, error = _Counted(), ""
        try:
            yield counted
        except BaseException as raised:
            error = telemetry.error_type(raised, expired)
            raise
        finally:
            self._metrics.ended(request, counted.model_class, self._loop.time() - arrived, error)
            if counted.flight is not None and counted.flight.summary is not None:
                self._metrics.summed_up(request, counted.model_class, counted.flight.summary)

    @contextmanager
    def _claimed(self, request: GenerateRequest) -> Iterator[None]:
        """Holds the request's id, made up if the client chose none, against a second request with it."""
        request_id = request.client_request_id = request.client_request_id or secrets.token_hex(16)
        if request_id in self._running:
            raise AlreadyExistsError(
                f"a request with client_request_id {request_id!r} is running; wait for it or choose another id",
                client_request_id=request_id,
            )
        self._running.add(request_id)
        self._idle.clear()
        try:
            yield
        finally:
            self._running.remove(request_id)
            if not self._running:
                self._idle.set()


def check_request(request: GenerateRequest) -> None:
    """Raises InvalidArgumentError for what can be judged without the model; the worker checks the rest."""
    if not request.model:
        raise InvalidArgumentError("model is empty; ListModels names what there is", field="model")
    if request.WhichOneof("prompt") is None:
        raise InvalidArgumentError("the request has no prompt; set one of text, token_ids, chat", field="prompt")
    request_id = request.client_request_id
    if len(request_id) > 128 or not request_id.isprintable():
        raise InvalidArgumentError(
            f"client_request_id has {len(request_id)} characters; expected at most 128, all printable",
            field="client_request_id",
        )
    if len(request.sticky_key) > _LONGEST_KEY:
        raise InvalidArgumentError(
            f"sticky_key has {len(request.sticky_key)} characters; expected at most {_LONGEST_KEY}", field="sticky_key"
        )
    if request.HasField("max_queue_wait") and request.max_queue_wait.ToNanoseconds() < 0:
        raise InvalidArgumentError(
            f"max_queue_wait is {request.max_queue_wait.ToJsonString()}; expected 0s or more", field="max_queue_wait"
        )


def _accepted(request_id: str, target: Target) -> GenerateResponse:
    revision = target.revision.partition("@")[2]
    return GenerateResponse(accepted=Accepted(request_id=request_id, model=target.model, revision=revision))
