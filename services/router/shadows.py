"""Shadow traffic: revisions that compute requests of others too, unseen, in places that nobody else needs.

A shadow never waits, never makes anything leave memory, and gives way: it is sent only to a worker that is at most half
full and has, or has room for, its delta; it has the lowest priority there; and it is dropped as soon as a request of
a client waits anywhere. The client's stream is only read along.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from deltaserve.errors import DeltaServeError
from deltaserve.names import RevisionName
from deltaserve.v1.inference_pb2 import GenerateRequest, GenerateResponse, ResponseOptions
from services.router.comparison import Comparison, PairCounts
from services.router.costs import Tier
from services.router.dispatch import Dispatcher
from services.router.flight import Flight, StreamLimits, Target
from services.router.link import WorkerLink
from services.router.routing import WorkerView, choose
from services.router.targets import Targets

log = logging.getLogger(__name__)

Write = Callable[[GenerateResponse], Awaitable[None]]

_LAST = -(2**31)  # priority
_LIMITS = StreamLimits(buffer_bytes=1 << 20, patience=30.0)  # a shadow's frames are read at once


class Shadow:
    """One request that is computed twice."""

    def __init__(self, primary: Flight, name: RevisionName, counts: PairCounts) -> None:
        self.primary = primary
        self.name = name
        self.counts = counts
        self.comparison = Comparison()
        self.link: WorkerLink | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tapped(self, write: Write) -> Write:
        """Returns `write`, read along."""

        async def tap(frame: GenerateResponse) -> None:
            if frame.HasField("chunk") and frame.chunk.index == 0:
                self.comparison.primary(frame.chunk.token_ids)
            elif frame.HasField("finished") and frame.finished.index == 0:
                self.comparison.primary_ended()
            self._look()
            await write(frame)

        return tap

    def drop(self) -> None:
        """Gives up a comparison that is not settled yet."""
        if not self._over.done():
            self._over.set_result(None)

    def client_left(self) -> None:
        """The primary's stream is over: if it did not end by itself, there is nothing to compare with."""
        if not self.comparison.primary_over:
            self.drop()

    async def run(self, flight: Flight, link: WorkerLink, loop: asyncio.AbstractEventLoop) -> None:
        """Computes the shadow until the comparison is settled or dropped; raises what the shadow failed with."""
        self.link = link
        link.submit(flight, loop.time())
        reading = asyncio.create_task(flight.outlet.drain_to(self._take))
        try:
            await asyncio.wait({reading, self._over}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                await self._over  # the primary may be behind
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            if isinstance(flight.carrier, WorkerLink):
                flight.carrier.abort(flight)
            self.link = None

    async def _take(self, frame: GenerateResponse) -> None:
        if frame.HasField("chunk"):
            self.comparison.shadow(frame.chunk.token_ids)
        elif frame.HasField("finished"):
            self.comparison.shadow_ended()
        self._look()
        if self.link is not None and self.link.report.waiting:
            self.drop()  # somebody else's requests wait on the worker

    def _look(self) -> None:
        if self.comparison.settled:
            self.drop()  # with a result


class Shadows:
    """All shadows of this router, and what they showed."""

    def __init__(self, targets: Targets, dispatcher: Dispatcher) -> None:
        self.pairs: dict[tuple[str, str], PairCounts] = {}  # (primary, shadow) → counts
        self._targets = targets
        self._dispatcher = dispatcher
        self._running: dict[asyncio.Task[None], Shadow] = {}
        self._loop = asyncio.get_running_loop()

    def beside(self, flight: Flight) -> Shadow | None:
        """Begins to compute a request twice if its alias says so; returns at once."""
        name = self._targets.shadow(flight.request.model, flight.id, flight.target)
        if name is None:
            return None
        counts = self.pairs.setdefault((flight.target.revision, str(name)), PairCounts())
        counts.sampled += 1
        shadow = Shadow(flight, name, counts)
        task = asyncio.create_task(self._run(shadow, background_request(flight.request)))
        self._running[task] = shadow
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return shadow

    def make_room(self) -> None:
        """Drops shadows whose worker a new request might need; called before each request is sent."""
        for shadow in self._running.values():
            if shadow.link is not None:
                view = shadow.link.view()
                if self._dispatcher.waiting or view.outstanding >= view.max_running:
                    shadow.drop()

    async def close(self) -> None:
        """Ends all shadows."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, shadow: Shadow, request: GenerateRequest) -> None:
        counts, primary = shadow.counts, shadow.primary
        try:
            target = await self._targets.target(shadow.name)
            link = self._spare(target)
            if link is None:
                counts.skipped += 1
                return
            flight = Flight(
                id=f"{primary.id}/shadow",
                target=target,
                request=request,
                seed=primary.seed,
                limits=_LIMITS,
                arrived=self._loop.time(),
                deadline=primary.deadline,
                background=True,
            )
            await shadow.run(flight, link, self._loop)
        except DeltaServeError as error:
            log.info("the shadow %s of request %s failed: %s", shadow.name, primary.id, error.message)
            counts.failed += 1
            return
        if shadow.comparison.settled:
            counts.count(shadow.comparison)
        else:
            counts.dropped += 1

    def _spare(self, target: Target) -> WorkerLink | None:
        """Returns a worker with a place that nobody else needs now."""
        if self._dispatcher.waiting:
            return None
        links = {link.name: link for link in self._dispatcher.fleet.serving(target.base_fingerprint)}
        views = [view for view in (link.view() for link in links.values()) if has_spare(view, target)]
        chosen = choose(views, target.revision, target.delta_bytes, 0)
        return links[chosen.name] if chosen else None


def has_spare(worker: WorkerView, target: Target) -> bool:
    """Tells whether a worker is at most half full and would have to let go of no delta for this one."""
    at_home = worker.tiers.get(target.revision, Tier.STORE) >= Tier.DEVICE or target.revision in worker.arriving
    return 2 * worker.outstanding <= worker.max_running and (at_home or worker.delta_bytes_free >= target.delta_bytes)


def background_request(request: GenerateRequest) -> GenerateRequest:
    """Returns what a shadow is asked: the same, for one choice, after all others, without what only a client reads."""
    copy = GenerateRequest()
    copy.CopyFrom(request)
    copy.priority = _LAST
    copy.sampling.n = 1
    copy.response.CopyFrom(ResponseOptions())
    copy.ClearField("max_queue_wait")
    return copy
