"""The link to one worker: keeps a Session open, carries flights over it, and knows how the worker is."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import grpc

from deltaserve import genai
from deltaserve.errors import DeltaServeError, UnavailableError
from deltaserve.rpc import tracing
from deltaserve.rpc.channels import internal_channel
from deltaserve.rpc.status import error_from_rpc, error_from_status
from deltaserve.v1.inference_pb2 import Tier as TierValue
from deltaserve.v1.inference_pb2 import TokenizeRequest, TokenizeResponse
from deltaserve.v1.worker_pb2 import (
    Abort,
    Arrivals,
    Pause,
    Place,
    RequestOutput,
    SessionRequest,
    SessionResponse,
    StateReport,
    TokenizePromptRequest,
    Welcome,
    Worths,
)
from deltaserve.v1.worker_pb2_grpc import WorkerServiceStub
from services.router.costs import LoadCosts, LoadSample, Tier
from services.router.flight import Flight
from services.router.routing import Room, WorkerView
from services.router.session import Session, open_session

log = logging.getLogger(__name__)

_FIRST_BACKOFF, _LAST_BACKOFF = 0.1, 2.0  # seconds
_REFUSAL_SECONDS = 1.0  # a worker that refused a request is left alone for so long
_UNREAD_ARRIVALS = 4096  # messages
_SERVICE_WEIGHT = 0.1  # of one more request in the mean service time


class LinkListener(Protocol):
    """Who wants to know about links."""

    def changed(self) -> None:
        """A worker came, has more room, or knows more."""

    def bounced(self, flights: list[Flight], worker: str, error: UnavailableError) -> None:
        """These flights are on no worker any more: it was lost, or refused them."""


class WorkerLink:
    """One worker's address, connected to for as long as `run` runs.

    Attributes:
        address: host:port.
        welcome: what the worker said of itself last; None before the first Session.
        report: how it was last; empty while there is no Session.
        flights: what it works on for this router, by wire_id.
        drained: whether an operator took it out of rotation.
        pins: revisions it was told to keep in this Session.
        arrivals: what it told of requests and placement has not read yet; the oldest go first.
        costs: of loads there.
        prefix_token_seconds: what a token in its prefix cache saves; 0 while it reports none.
    """

    def __init__(self, address: str, router: str, listener: LinkListener) -> None:
        self.address = address
        self.welcome: Welcome | None = None
        self.report = StateReport()
        self.flights: dict[str, Flight] = {}
        self.drained = False
        self.pins: set[str] = set()
        self.arrivals: deque[Arrivals] = deque(maxlen=_UNREAD_ARRIVALS)
        self.costs = LoadCosts()
        self.prefix_token_seconds = 0.0
        self._router = router
        self._listener = listener
        self._session: Session | None = None
        self._channel: grpc.aio.Channel | None = None
        self._refused_until = float("-inf")
        self._tiers: dict[str, Tier] = {}
        self._service_seconds = 1.0

    @property
    def name(self) -> str:
        """The worker's own name, or its address before it told one."""
        return self.welcome.worker if self.welcome else self.address

    @property
    def connected(self) -> bool:
        """Whether there is a Session."""
        return self._session is not None

    @property
    def serving(self) -> bool:
        """Whether it may be sent new requests."""
        return self.connected and not (self.drained or self.report.draining or self._refuses)

    @property
    def _refuses(self) -> bool:
        return asyncio.get_running_loop().time() < self._refused_until

    async def run(self) -> None:
        """Keeps a Session open until cancelled, with growing pauses between attempts that fail."""
        backoff = _FIRST_BACKOFF
        while True:
            why = "the worker ended the session"
            try:
                async with internal_channel(self.address) as self._channel:
                    await self._converse(self._channel)
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
            except DeltaServeError as error:
                why = error.message
            finally:
                was_up = self._hang_up(why)
            backoff = _FIRST_BACKOFF if was_up else min(backoff * 2, _LAST_BACKOFF)
            log.log(logging.WARNING if was_up else logging.INFO, "no session with %s: %s", self.address, why)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    def submit(self, flight: Flight, now: float) -> None:
        """Sends a flight to the worker."""
        message = flight.submission(now)
        flight.carrier = self
        flight.span.add_event("submitted", {genai.WORKER: self.name, genai.ATTEMPT: flight.attempts})
        flight.span.set_attribute(genai.WORKER, self.name)
        self.flights[flight.wire_id] = flight
        self._send(SessionRequest(submit=message))
        if flight.outlet.paused:
            self.pause(flight, True)

    def tier(self, revision: str) -> Tier:
        """Returns where a revision is there, as far as it told."""
        return self._tiers.get(revision, Tier.STORE) if revision else Tier.NONE

    def abort(self, flight: Flight) -> None:
        """Takes a flight back, if the worker still has it."""
        if self.flights.pop(flight.wire_id, None) is not None:
            flight.carrier = None
            self._send(SessionRequest(abort=Abort(request_id=flight.wire_id)))

    def pause(self, flight: Flight, paused: bool) -> None:
        """Holds a flight back, or lets it go on."""
        if flight.wire_id in self.flights:
            self._send(SessionRequest(pause=Pause(request_id=flight.wire_id, paused=paused)))

    def drain(self, drained: bool) -> None:
        """Takes the worker out of rotation, or back in."""
        self.drained = drained
        self._listener.changed()

    def place(self, revision: str, tier: TierValue.ValueType, pinned: bool | None = None) -> None:
        """Orders a delta in or out; by default it stays pinned, or not, as it is."""
        pinned = revision in self.pins if pinned is None else pinned
        self._send(SessionRequest(place=Place(revision=revision, tier=tier, pinned=pinned)))

    def rank(self, worths: Mapping[str, float]) -> None:
        """Tells what deltas in memory are worth."""
        self._send(SessionRequest(worths=Worths(by_revision=worths)))

    async def tokenize(self, revision: str, request: TokenizeRequest, seconds: float) -> TokenizeResponse:
        """Asks the worker to tokenize within `seconds`; raises what it raised, UnavailableError or DeadlineError."""
        if self._channel is None or not self.connected:
            raise UnavailableError(f"worker {self.name} is not connected")
        stub = WorkerServiceStub(self._channel)
        try:
            answer = await stub.TokenizePrompt(
                TokenizePromptRequest(revision=revision, request=request), timeout=seconds, metadata=tracing.metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return answer.response

    def room(self) -> Room:
        """Returns how full the worker is."""
        return Room(
            outstanding=max(len(self.flights), self.report.running + self.report.waiting),
            max_running=self.welcome.max_running if self.welcome else 0,
            service_seconds=self.report.service_time.ToNanoseconds() / 1e9,
        )

    def view(self) -> WorkerView:
        """Returns what routing needs to know."""
        welcome, report = self.welcome or Welcome(), self.report
        return WorkerView(
            name=self.name,
            base_fingerprint=welcome.base_fingerprint,
            # reports are up to a second old, and other routers' requests are only in them
            outstanding=max(len(self.flights), report.running + report.waiting),
            max_running=welcome.max_running,
            step_seconds=report.step_time.ToNanoseconds() / 1e9,
            service_seconds=report.service_time.ToNanoseconds() / 1e9 or self._service_seconds,
            delta_bytes_free=max(0, report.delta_bytes_budget - report.delta_bytes_used),
            tiers=self._tiers,
            expected=_Expected(self.flights),
            arriving={a.revision: 1 - a.bytes_done / max(a.bytes_total, 1) for a in report.arriving if a.to_memory},
            costs=self.costs,
        )

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        async with open_session(channel, self._router) as session:
            self.welcome = session.welcome
            self._session = session
            log.info("session with worker %s at %s", self.name, self.address)
            self._listener.changed()
            await session.receive(self._receive)

    def _receive(self, message: SessionResponse) -> None:
        if message.HasField("outputs"):
            now = asyncio.get_running_loop().time()
            ended = [self._take(output, now) for output in message.outputs.outputs]
            if any(ended):
                self._listener.changed()
        elif message.HasField("state"):
            self._take_report(message.state)
            self._listener.changed()
        elif message.HasField("arrivals"):
            self.arrivals.append(message.arrivals)

    def _take_report(self, report: StateReport) -> None:
        if report.loads != self.report.loads:
            self.costs = LoadCosts().measured(load_samples(report))
        self.report = report
        self._tiers = {r.revision: Tier(r.tier) for r in report.residency}
        self.prefix_token_seconds = report.prefix_token_time.ToNanoseconds() / 1e9

    def _take(self, output: RequestOutput, now: float) -> bool:
        """Passes on what is new about a flight; returns whether it ended."""
        flight = self.flights.get(output.request_id)
        if flight is None:
            return False  # aborted meanwhile
        if flight.deliver(output.frames, now):
            spent = now - (flight.prefilled or now)
            self._service_seconds += _SERVICE_WEIGHT * (spent - self._service_seconds)
        elif not output.error_status:
            return False
        self.flights.pop(output.request_id, None)
        if output.error_status:
            self._fail(flight, error_from_status(output.error_status))
        return True

    def _fail(self, flight: Flight, error: DeltaServeError) -> None:
        flight.carrier = None
        if isinstance(error, UnavailableError):  # draining, full, or its engine died
            self._refused_until = asyncio.get_running_loop().time() + _REFUSAL_SECONDS
            self._listener.bounced([flight], self.name, error)
        else:
            flight.fail(error)

    def _hang_up(self, why: str) -> bool:
        """Forgets the Session; returns whether there was one."""
        was_up, self._session, self._channel = self.connected, None, None
        self.report, self._tiers, self.pins = StateReport(), {}, set()
        lost, self.flights = list(self.flights.values()), {}
        for flight in lost:
            flight.carrier = None
        if lost:
            self._listener.bounced(lost, self.name, UnavailableError(why))
        return was_up

    def _send(self, message: SessionRequest) -> None:
        if self._session is not None:
            self._session.send(message)


class _Expected(Collection[str]):
    """Revisions that flights need; looked at when somebody asks, since there may be thousands of flights."""

    def __init__(self, flights: Mapping[str, Flight]) -> None:
        self._flights = flights

    def __contains__(self, revision: object) -> bool:
        return any(flight.target.revision == revision for flight in self._flights.values())

    def __iter__(self) -> Iterator[str]:
        return iter({flight.target.revision for flight in self._flights.values()})

    def __len__(self) -> int:
        return len(set(iter(self)))


def load_samples(report: StateReport) -> list[LoadSample]:
    """Returns the loads that a worker measured."""
    return [LoadSample(Tier(s.source), s.bytes, s.time.ToNanoseconds() / 1e9) for s in report.loads]
