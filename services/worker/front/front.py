"""The front as a whole: sessions on one side, the engine on the other, and what both are told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from deltaserve.errors import DeltaServeError, DrainingError, UnavailableError, WorkerLostError
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2
from services.worker.front.deltas import Deltas
from services.worker.front.disk import DiskCache
from services.worker.front.grammar import vocabulary_of
from services.worker.front.history import ArrivalHistory
from services.worker.front.prompt import prompt_ids
from services.worker.front.reports import state_report
from services.worker.front.requests import Requests
from services.worker.front.revisions import Revisions
from services.worker.front.session import RouterSession
from services.worker.front.supervisor import Supervisor
from services.worker.messages import DeltaChanged, FromEngine, Rank, Ready, Stats, Step, Totals, Wanted
from services.worker.metrics import WorkerMetrics
from services.worker.settings import WorkerSettings

log = logging.getLogger(__name__)

_SILENCE_SECONDS = 1.0  # longest time between two reports


class Front:
    """Serves all sessions.

    Attributes:
        name: of this worker.
        supervisor: of the engine.
        requests: those of all sessions.
        metrics: of all that happens here.
        draining: whether routers are told to look elsewhere.
        refusing: whether new requests are refused.
    """

    def __init__(self, settings: WorkerSettings, name: str, disk: DiskCache, revisions: Revisions) -> None:
        """Joins the parts; `run` starts them."""
        self.name = name
        self.draining = False
        self.refusing = False
        self.supervisor = Supervisor(
            settings.engine(), settings.engine_restarts, self._receive, self._engine_ready, self._engine_lost
        )
        self.metrics = WorkerMetrics()
        self._disk = disk
        self._deltas = Deltas(disk, self.supervisor.send, self._delta_failed, self.metrics.loaded)
        self.requests = Requests(name, self.supervisor, revisions, self._deltas, settings.max_logprobs, self.metrics)
        self.metrics.serve(self)
        self._settings = settings
        self._revisions = revisions
        self._sessions: set[RouterSession] = set()
        self._stats: Stats | None = None
        self._arrivals: Counter[str] = Counter()
        self._history = ArrivalHistory()
        self._errands: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Runs engine and reports until cancelled; raises InternalError when the engine cannot be kept alive."""
        reports = asyncio.create_task(self._report())
        try:
            await self.supervisor.run()
        finally:
            for task in (reports, *self._errands):
                task.cancel()
            await asyncio.gather(reports, *self._errands, return_exceptions=True)
            await self._deltas.close()

    def open(self, router: str) -> RouterSession:
        """Opens a session; raises UnavailableError while no engine is ready."""
        ready = self._ready()
        session = RouterSession(router)
        welcome = worker_pb2.Welcome(
            worker=self.name,
            base_fingerprint=ready.base_fingerprint,
            base_model=self._settings.base_model,
            context_length=ready.context_length,
            max_running=self._settings.max_running,
        )
        session.outbox.welcome(welcome)
        session.outbox.report(self.report())
        self._send_arrivals()  # to the others: the new one finds them in the history
        session.outbox.arrivals(self._history.whole())
        self._sessions.add(session)
        log.info("router %s is connected", router)
        return session

    def close(self, session: RouterSession) -> None:
        """Ends a session and aborts its requests; nothing happens the second time."""
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        log.info("router %s has gone; aborting %d requests", session.router, len(session.tasks))
        session.cancel_all()

    def submit(self, session: RouterSession, submit: worker_pb2.Submit) -> None:
        """Takes a request; everything about it is answered through the session."""
        if submit.request_id in session.tasks:
            log.error("router %s sent request %s twice; the second is ignored", session.router, submit.request_id)
            return
        self._arrivals[submit.revision] += 1
        if submit.revision and not submit.resume:
            self._history.add(submit.revision, time.time_ns() // 1_000_000)
        try:
            self._admit()
        except DeltaServeError as error:
            self.requests.refuse(submit, session.outbox, error)
            return
        session.add(*self.requests.start(submit, session.outbox))

    def pause(self, session: RouterSession, request_id: str, paused: bool) -> None:
        """Holds a request back or lets it go on; unknown ones are ignored."""
        request = session.requests.get(request_id)
        if request is not None:
            self.requests.pause(request, paused)

    def place(self, order: worker_pb2.Place) -> None:
        """Brings a delta to memory ahead of requests, or lets go of it."""
        if order.tier == pb.TIER_DEVICE:
            self._run_errand(self._prefetch(order.revision, order.pinned))
        elif order.tier == pb.TIER_DISK:
            self._run_errand(self._cache(order.revision))
        elif order.tier == pb.TIER_STORE:
            self._deltas.drop(order.revision)
        else:
            log.warning("order to bring %s to tier %s, which is no place for it", order.revision, order.tier)

    def rank(self, worths: worker_pb2.Worths) -> None:
        """Tells the engine which deltas to keep rather than others."""
        self.supervisor.send(Rank(dict(worths.by_revision)))

    async def tokenize(self, request: worker_pb2.TokenizePromptRequest) -> pb.TokenizeResponse:
        """Returns the tokens of a prompt; raises as `Revisions.get` and `prompt_ids` do."""
        ready = self._ready()
        revision = await self._revisions.get(request.revision)
        ids = await asyncio.to_thread(prompt_ids, request.request, revision)
        pieces = await asyncio.to_thread(revision.tokenizer.pieces, ids)
        context = min(ready.context_length, revision.max_positions)
        return pb.TokenizeResponse(token_ids=ids, pieces=pieces, context_length=context)

    async def drain(self, notice_seconds: float, grace_seconds: float) -> None:
        """Sends routers elsewhere, refuses what still comes, lets running requests end, then ends the sessions."""
        self.draining = True
        self._send_report()
        await asyncio.sleep(notice_seconds if self._sessions else 0.0)
        self.refusing = True
        if not await self.requests.finish(grace_seconds):
            log.warning("%d requests are cut off after %g s", len(self.requests), grace_seconds)
            self.requests.cut_off()
            await self.requests.finish(1.0)
        for session in self._sessions:
            session.outbox.end()

    def report(self) -> worker_pb2.StateReport:
        """Returns what routers hear."""
        engine = self.supervisor.engine
        return state_report(
            ready=None if engine is None else engine.ready,
            stats=self._stats,
            unsent=self.requests.unsent,
            residency=self._deltas.residency(self.name),
            arrivals=self._arrivals,
            draining=self.draining,
            transfers=self._deltas.transfers(),
            service_seconds=self.requests.service_seconds,
        )

    def totals(self) -> Totals:
        """Returns the engine's counts."""
        return Totals() if self._stats is None else self._stats.totals

    def disk_evictions(self) -> int:
        """Returns the deltas that left the disk cache."""
        return self._disk.evictions

    def engine_restarts(self) -> int:
        """Returns how often an engine was replaced."""
        return self.supervisor.replaced

    def _ready(self) -> Ready:
        if self.supervisor.engine is None:
            raise UnavailableError(f"the engine of worker {self.name} is starting", retry_seconds=1.0)
        return self.supervisor.engine.ready

    def _admit(self) -> None:
        if self.refusing:
            raise DrainingError(f"worker {self.name} is shutting down", retry_seconds=0.1)
        self._ready()
        if len(self.requests) >= self._settings.max_requests:
            raise UnavailableError(f"worker {self.name} has {len(self.requests)} requests, as many as it takes")

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Step():
                self.requests.take(message)
            case Stats():
                self._stats = message
                self._deltas.uses(message.deltas)
            case DeltaChanged():
                self._deltas.changed(message)
            case Wanted(revision):
                self._run_errand(self._answer_wanted(revision))
            case Ready():
                log.warning("the engine said Ready twice")

    def _engine_ready(self, ready: Ready) -> None:
        self._revisions.serve(ready.base_fingerprint)
        self._run_errand(self._teach_base())

    async def _teach_base(self) -> None:
        """Gets the base's tokenizer, which most fine-tunes share, ready for grammars before requests come."""
        try:
            vocabulary = vocabulary_of(await self._revisions.get(""))
        except DeltaServeError as error:
            log.warning("no grammars over the base: %s", error.message)
            return
        if self.supervisor.engine is not None:
            self.supervisor.engine.teach(vocabulary)

    def _engine_lost(self, status: int) -> None:
        self._stats = None
        self.requests.engine_lost(status)
        self._deltas.engine_lost(WorkerLostError(f"the engine of worker {self.name} died with status {status}"))
        self._run_errand(self._end_sessions())

    def _delta_failed(self, revision: str, error: DeltaServeError) -> None:
        self.requests.delta_failed(revision, error)

    async def _end_sessions(self) -> None:
        sessions = list(self._sessions)
        await self.requests.finish(1.0)  # their errors go out first
        for session in sessions:
            session.outbox.end(UnavailableError(f"worker {self.name} lost its engine and starts another"))

    async def _prefetch(self, revision: str, pinned: bool) -> None:
        try:
            found = await self._revisions.get(revision)
            if found.delta is not None:
                self._deltas.pin(found.delta, pinned)
        except DeltaServeError as error:
            log.warning("cannot bring %s to memory: %s", revision, error.message)

    async def _cache(self, revision: str) -> None:
        try:
            found = await self._revisions.get(revision)
            if found.delta is not None:
                self._deltas.cache(found.delta)
        except DeltaServeError as error:
            log.warning("cannot bring %s to disk: %s", revision, error.message)

    async def _answer_wanted(self, revision: str) -> None:
        try:
            found = await self._revisions.get(revision)
            if found.delta is not None:
                self._deltas.wanted(found.delta)
        except DeltaServeError as error:
            self._delta_failed(revision, error)

    def _run_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _report(self) -> None:
        sent, sent_at = worker_pb2.StateReport(), 0.0
        while True:
            await asyncio.sleep(self._settings.report_seconds)
            self._send_arrivals()
            state, now = self.report(), time.monotonic()
            if state != sent or now - sent_at >= _SILENCE_SECONDS - self._settings.report_seconds / 2:
                self._send_report()
                sent, sent_at = state, now

    def _send_report(self) -> None:
        for session in self._sessions:
            session.outbox.report(self.report())

    def _send_arrivals(self) -> None:
        news = self._history.news()
        if news is not None:
            for session in self._sessions:
                session.outbox.arrivals(news)
