"""The queue of requests that wait for a worker, and who goes where when."""

from __future__ import annotations

import asyncio
import bisect
import logging
from collections.abc import Iterable, Sequence

from deltaserve import genai, telemetry
from deltaserve.errors import BaseMismatchError, DrainingError, UnavailableError
from deltaserve.v1.inference_pb2 import STAGE_QUEUED, GenerateRequest, GenerateResponse, Progress
from deltaserve.v1.inference_pb2 import Tier as TierValue
from services.router.fleet import Fleet
from services.router.flight import Flight
from services.router.link import WorkerLink
from services.router.metrics import RouterMetrics
from services.router.prefixes import Prefixes, marks_of
from services.router.rates import SHORT_SECONDS, ArrivalRate
from services.router.routing import choose
from services.router.settings import RouterSettings

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
_MOST_ATTEMPTS = 3  # a request that was on three workers as they died may be why


class Dispatcher:
    """Holds requests by priority and arrival until a worker has room; sends them on, again if a worker is lost early.

    Everything but `run` is synchronous: whoever changes something calls `dispatch`.
    """

    def __init__(self, settings: RouterSettings, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self.fleet = Fleet(settings.name, self)
        self._settings = settings
        self._waiting: list[Flight] = []
        self._prefixes = Prefixes()
        self._loop = asyncio.get_running_loop()
        self._done = ArrivalRate(SHORT_SECONDS, self._loop.time())

    @property
    def waiting(self) -> int:
        """Requests that wait here."""
        return len(self._waiting)

    def enter(self, flight: Flight) -> None:
        """Takes a request: it is sent to a worker now or later.

        Raises:
            UnavailableError: the queue is full.
            BaseMismatchError: there are workers, but none ever served the base that the request needs.
        """
        self._check_base(flight)
        if len(self._waiting) >= self._settings.max_queue:
            eta = self._eta(len(self._waiting))
            raise UnavailableError(
                f"{len(self._waiting)} requests are waiting (limit {self._settings.max_queue}); try again later",
                retry_seconds=max(1.0, eta or 1.0),
                waiting=len(self._waiting),
            )
        self._queue(flight)
        self.dispatch()
        if flight.carrier is None:
            self._tell(flight, self._waiting.index(flight))

    def leave(self, flight: Flight) -> None:
        """Forgets a request that has ended, for whatever reason; its worker is told if it still works on it."""
        if flight.carrier is None:
            if flight in self._waiting:
                self._waiting.remove(flight)
                told = {genai.WAITING: len(self._waiting) + 1}
                telemetry.record("queue", flight.span, flight.waiting_since, self._loop.time(), told)
            return
        if isinstance(flight.carrier, WorkerLink):
            flight.carrier.abort(flight)
        self._done.add(self._loop.time())
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
        full: set[str] = set()  # bases without room: later requests of theirs need not be tried
        for flight in list(self._waiting):
            base = flight.target.base_fingerprint
            if base in full:
                continue
            link = self._pick(flight)
            if link is None:
                full.add(base)
                continue
            waiting = len(self._waiting)
            self._waiting.remove(flight)
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
            for position, flight in enumerate(list(self._waiting)):
                if self.fleet.serving(flight.target.base_fingerprint):
                    self._tell(flight, position)
                elif now - flight.waiting_since > self._settings.no_worker_seconds:
                    self._waiting.remove(flight)
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
        flight.waiting_since = self._loop.time()
        bisect.insort(self._waiting, flight, key=lambda f: f.order)

    def _tell(self, flight: Flight, position: int) -> None:
        if flight.told == position or flight.output.started:
            return
        flight.told = position
        progress = Progress(stage=STAGE_QUEUED, position=position)
        eta = self._eta(position)
        if eta is not None:
            progress.eta.FromNanoseconds(int(eta * 1e9))
        flight.outlet.put([GenerateResponse(progress=progress)])

    def _eta(self, position: int) -> float | None:
        rate = self._done.rate(self._loop.time())
        return (position + 1) / rate if rate > 0.01 else None

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
