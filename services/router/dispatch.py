"""The queue of requests that wait for a worker, and who goes where when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from deltaserve import genai, telemetry
from deltaserve.errors import BaseMismatchError, DrainingError, UnavailableError
from deltaserve.v1.inference_pb2 import STAGE_QUEUED, GenerateRequest, GenerateResponse, Progress
from deltaserve.v1.inference_pb2 import Tier as TierValue
from services.router.admission.fair import Claim
from services.router.admission.gate import Gate, check_wait
from services.router.fleet import Fleet
from services.router.flight import Flight
from services.router.link import WorkerLink
from services.router.metrics import RouterMetrics
from services.router.prefixes import Prefixes, marks_of
from services.router.routing import Room, choose, has_room
from services.router.settings import RouterSettings
from services.router.waiting import Line, Lines

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
_MOST_ATTEMPTS = 3  # a request that was on three workers as they died may be why


class Dispatcher:
    """Holds requests in fair order until a worker has room; sends them on, again if a worker is lost early.

    Everything but `run` is synchronous: whoever changes something calls `dispatch`.

    Attributes:
        fleet: the workers.
        gate: what requests have to pass.
    """

    def __init__(self, settings: RouterSettings, metrics: RouterMetrics, gate: Gate | None = None) -> None:
        self._metrics = metrics
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.fleet = Fleet(settings.name, self)
        self.gate = gate or Gate(settings.queue_limits(), settings.key_book(), self._loop.time())
        self._lines = Lines(self.gate)
        self._prefixes = Prefixes()

    @property
    def waiting(self) -> int:
        """Requests that wait here."""
        return len(self._lines)

    def enter(self, flight: Flight) -> None:
        """Takes a request: it is sent to a worker now or later.

        Raises:
            QuotaError: a quota of its key or model is used up, or its key has too much waiting.
            OverloadedError: the queue is full, or its turn would come too late for it.
            BaseMismatchError: there are workers, but none ever served the base that the request needs.
        """
        self._check_base(flight)
        line, now = self._lines.of(flight), self._loop.time()
        claim = self.gate.claim(flight.caller, flight.target.model, flight.size, flight.request.priority)
        self.gate.check(flight.caller, claim, now)
        rooms = [link.room() for link in self.fleet.serving(flight.target.base_fingerprint)]
        position = line.queue.ahead(claim)
        expected = line.expected(position, rooms)
        check_wait(expected, None if flight.patience is None else flight.patience - now)
        if position or not any(has_room(room, self._settings.worker_backlog) for room in rooms):
            self.gate.check_lines(flight.caller, claim, expected, now)
            if self.gate.is_full(len(self._lines)):
                self._displace(line, claim, expected)
        self.gate.take(flight.caller, claim, now)
        flight.claim = claim
        line.push(flight, claim, now)
        self.dispatch()
        if flight.carrier is None and not flight.outlet.closed:
            self._tell(flight, position, expected)

    def leave(self, flight: Flight) -> None:
        """Forgets a request that has ended, for whatever reason; its worker is told if it still works on it."""
        if flight.claim is None:
            return  # was not admitted
        line, now = self._lines.of(flight), self._loop.time()
        if flight in line.queue:
            told = {genai.WAITING: len(self._lines)}
            line.drop(flight, now)
            telemetry.record("queue", flight.span, flight.waiting_since, now, told)
        if isinstance(flight.carrier, WorkerLink):
            flight.carrier.abort(flight)
        self._settle(flight, line, now)
        self.dispatch()

    def changed(self) -> None:
        """A worker came, has more room, or knows more."""
        self.dispatch()

    def bounced(self, flights: list[Flight], worker: str, error: UnavailableError) -> None:
        """Sends requests that lost their worker to another, which goes on where the first one stopped."""
        for flight in flights:
            flight.lost = worker, error
            about = {genai.WORKER: worker, genai.ERROR_TYPE: error.reason, "message": error.message}
            flight.span.add_event("left worker", about)
            if isinstance(error, DrainingError):
                flight.attempts -= 1  # a rollout that moves a long stream from worker to worker is no sign of a bad one
            if flight.background or flight.attempts >= _MOST_ATTEMPTS:
                self._metrics.left_worker("failed")
                self._give_up(flight)
            else:
                self._metrics.left_worker("again")
                told = {"span": flight.span}
                log.info("request %s leaves worker %s: %s", flight.id, worker, error.message, extra=told)
                self._queue(flight)
        self.dispatch()

    def dispatch(self) -> None:
        """Sends every waiting request that some worker has room for, in order."""
        for line in self._lines:
            while (flight := line.queue.peek()) is not None:
                link = self._pick(flight)
                if link is None:
                    break  # nor is there room for another of the same base
                waiting = len(self._lines)
                line.drop(flight, self._loop.time(), served=True)
                self._submit(flight, link, waiting)

    def _submit(self, flight: Flight, link: WorkerLink, waiting: int) -> None:
        """Sends a flight to a worker, and tells of its wait."""
        now, revision = self._loop.time(), flight.target.revision
        tier = link.tier(revision)
        self._metrics.submitted(link.name, revision, tier, now - flight.waiting_since)
        link.submit(flight, now)
        about: telemetry.Attributes = {
            genai.WORKER: link.name,
            genai.TIER: genai.tier_name(TierValue.ValueType(int(tier))),
            genai.ATTEMPT: flight.attempts,
            genai.WAITING: waiting,
        }
        telemetry.record("queue", flight.span, flight.waiting_since, now, about)

    async def run(self) -> None:
        """Tells waiting requests their position, and gives up those that no worker can serve; until cancelled."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self._loop.time()
            for line in self._lines:
                rooms: list[Room] | None = None
                for position, flight in enumerate(line.queue.order()):
                    if links := self.fleet.serving(flight.target.base_fingerprint):
                        rooms = rooms or [link.room() for link in links]
                        self._tell(flight, position, line.expected(position, rooms))
                    elif now - flight.waiting_since > self._settings.no_worker_seconds:
                        line.drop(flight, now)
                        self._give_up(flight)

    def _pick(self, flight: Flight) -> WorkerLink | None:
        links = {link.name: link for link in self.fleet.serving(flight.target.base_fingerprint)}
        views = [link.view() for link in links.values()]
        target, benefits, caching = flight.target, {}, _token_seconds(links.values())
        marks = marks_of(_prompt(flight.request)) if caching else []
        if caching:
            benefits = self._prefixes.benefits(target.revision, marks, caching)
        chosen = choose(views, target.revision, target.delta_bytes, self._settings.worker_backlog, benefits)
        if chosen is None:
            return None
        self._prefixes.sent(target.revision, marks, chosen.name)
        return links[chosen.name]

    def _queue(self, flight: Flight) -> None:
        if flight.claim is not None:
            self._lines.of(flight).push(flight, flight.claim, self._loop.time())

    def _displace(self, line: Line, claim: Claim, expected: float | None) -> None:
        """Makes room in a full queue for a request that has more right to it than the last of another key."""
        error = self.gate.full(len(self._lines), expected)
        for crowded in (line, max(self._lines, key=lambda other: len(other.queue))):
            victim = crowded.queue.crowder(claim)
            if victim is not None:
                crowded.drop(victim, self._loop.time())
                victim.fail(error)
                return
        raise error

    def _settle(self, flight: Flight, line: Line, now: float) -> None:
        if flight.claim is None:
            return
        size, model = flight.size, flight.claim.model
        used = flight.output.tokens
        if flight.summary is not None:
            usage = flight.summary.usage
            used = usage.prompt_tokens + usage.completion_tokens
            self.gate.learn(model, size, usage.prompt_tokens, usage.completion_tokens)
        elif flight.prefilled is not None:
            used += round(self.gate.prompt_tokens(model, size))
        self.gate.settle(flight.caller, flight.claim, used, now)
        if flight.attempts:
            line.queue.settle(flight.claim, used)
            line.throughput.ended(now)

    def _tell(self, flight: Flight, position: int, eta: float | None) -> None:
        if flight.told == position or flight.output.started:
            return
        flight.told = position
        progress = Progress(stage=STAGE_QUEUED, position=position)
        if eta is not None:
            progress.eta.FromNanoseconds(int(eta * 1e9))
        flight.outlet.put([GenerateResponse(progress=progress)])

    def _check_base(self, flight: Flight) -> None:
        known = self.fleet.bases()
        if known and flight.target.base_fingerprint not in known.values():
            raise BaseMismatchError(
                f"model {flight.target.model} was made for the base {flight.target.base_fingerprint}; "
                f"the workers serve {', '.join(f'{name} ({print_})' for name, print_ in sorted(known.items()))}",
                expected=flight.target.base_fingerprint,
            )

    def _give_up(self, flight: Flight) -> None:
        if flight.lost is not None:
            worker, error = flight.lost
            flight.fail_lost(worker, error.message)
            return
        links = self.fleet.links()
        flight.fail(
            UnavailableError(
                f"no worker takes requests for the base of model {flight.target.model}: {len(links)} known, "
                f"{sum(link.connected for link in links)} connected, {sum(link.serving for link in links)} serving",
                retry_seconds=self._settings.no_worker_seconds,
            )
        )


def _token_seconds(links: Iterable[WorkerLink]) -> dict[str, float]:
    return {link.name: link.prefix_token_seconds for link in links if link.prefix_token_seconds}


def _prompt(request: GenerateRequest) -> str | Sequence[int]:
    match request.WhichOneof("prompt"):
        case "token_ids":
            return request.token_ids.ids
        case "chat":
            return "\0".join(f"{m.role}\0{m.content}" for m in request.chat.messages)
        case _:
            return request.text
