"""AdminService: translates calls, nothing more."""

# ruff: noqa: N802, ARG002 - names and arguments are the proto's

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from deltaserve.errors import InvalidArgumentError, UnavailableError
from deltaserve.v1 import admin_pb2 as pb
from deltaserve.v1.admin_pb2_grpc import AdminServiceServicer
from deltaserve.v1.inference_pb2 import TIER_DEVICE, TIER_STORE, Tier
from services.router.dispatch import Dispatcher
from services.router.forecasts import Forecast
from services.router.link import WorkerLink
from services.router.placer import Placer
from services.router.plan import Placed
from services.router.shadows import Shadows
from services.router.targets import Targets
from services.router.usage import usage_of

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(AdminServiceServicer):
    """See admin.proto."""

    def __init__(self, targets: Targets, dispatcher: Dispatcher, placer: Placer, shadows: Shadows) -> None:
        self._shadows = shadows
        self._dispatcher = dispatcher
        self._placer = placer
        self._targets = targets
        self._fleet = dispatcher.fleet

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        """Tells what quotas and the queue know."""
        now = asyncio.get_running_loop().time()
        return usage_of(self._dispatcher.gate, self._dispatcher.waiting, now)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        """Lists the workers that discovery found."""
        return pb.ListWorkersResponse(workers=[_worker(link) for link in self._fleet.links()])

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> pb.DrainWorkerResponse:
        """Sets whether this router sends the worker new requests; other routers are told by their own callers."""
        if not request.worker:
            raise InvalidArgumentError("worker is empty; ListWorkers names them", field="worker")
        for link in self._fleet.named(request.worker):
            link.drain(not request.undo)
        return pb.DrainWorkerResponse()

    async def PlaceRevision(self, request: pb.PlaceRevisionRequest, context: Context) -> pb.PlaceRevisionResponse:
        """Sends the order to the named worker, or to all of the right base."""
        if request.tier not in {TIER_DEVICE, TIER_STORE}:
            name = Tier.Name(request.tier) if request.tier in Tier.values() else request.tier
            raise InvalidArgumentError(f"tier is {name}; expected TIER_DEVICE or TIER_STORE", field="tier")
        target = await self._targets.resolve(request.model)
        if not target.revision:
            raise InvalidArgumentError(f"model {target.model!r} is the base, which is always in memory", field="model")
        links = [
            link
            for link in self._fleet.named(request.worker)
            if link.connected and link.welcome and link.welcome.base_fingerprint == target.base_fingerprint
        ]
        if not links:
            raise UnavailableError(f"no connected worker {request.worker} serves the base of model {target.model}")
        for link in links:
            link.place(target.revision, request.tier)
        return pb.PlaceRevisionResponse()

    async def GetPlacement(self, request: pb.GetPlacementRequest, context: Context) -> pb.GetPlacementResponse:
        """Tells the last round."""
        last, response = self._placer.last, pb.GetPlacementResponse(digest=self._placer.last.digest)
        response.horizon.FromNanoseconds(int(self._placer.horizon * 1e9))
        if last.at:
            response.decided_at.FromNanoseconds(int(last.at * 1e9))
            response.took.FromNanoseconds(int(last.seconds * 1e9))
        for revision, place in last.placed.items():
            if request.model in {"", revision.partition("@")[0]}:
                until = await self._placer.next_request(revision)
                response.revisions.append(_placed(place, last.forecasts[revision], until))
        for at, order in self._placer.orders:
            if request.model in {"", order.revision.partition("@")[0]}:
                told = response.orders.add(
                    worker=order.worker, revision=order.revision, tier=order.tier.value, reason=order.reason
                )
                told.time.FromNanoseconds(int(at * 1e9))
        return response

    async def ListShadows(self, request: pb.ListShadowsRequest, context: Context) -> pb.ListShadowsResponse:
        """Tells what shadows showed."""
        return pb.ListShadowsResponse(
            pairs=[
                pb.ShadowPair(
                    primary=primary,
                    shadow=shadow,
                    sampled=counts.sampled,
                    skipped=counts.skipped,
                    dropped=counts.dropped,
                    failed=counts.failed,
                    compared=counts.compared,
                    identical=counts.identical,
                    tokens_agreed=counts.tokens_agreed,
                    diverged=counts.diverged,
                    agreement=counts.agreement,
                    mean_divergence=counts.mean_divergence,
                )
                for (primary, shadow), counts in sorted(self._shadows.pairs.items())
            ]
        )


def _placed(place: Placed, forecast: Forecast, until: float | None) -> pb.PlacedRevision:
    demand = place.demand
    entry = pb.PlacedRevision(
        revision=demand.revision,
        delta_bytes=demand.bytes,
        probability=demand.probability,
        short_rate=forecast.short_rate,
        long_rate=forecast.long_rate,
        bursting=forecast.bursting,
        worth=place.worth,
        pinned=demand.pinned,
        copies=place.copies,
        memory=place.memory,
        disk=place.disk,
    )
    if until is not None:
        entry.next_request.FromNanoseconds(int(until * 1e9))
    return entry


def _worker(link: WorkerLink) -> pb.Worker:
    report = link.report
    state = pb.WORKER_STATE_CONNECTING
    if link.connected:
        state = pb.WORKER_STATE_SERVING if link.serving else pb.WORKER_STATE_DRAINING
    worker = pb.Worker(
        worker=link.name if link.welcome else "",
        address=link.address,
        state=state,
        running=report.running,
        waiting=report.waiting,
        kv_blocks_total=report.kv_blocks_total,
        kv_blocks_free=report.kv_blocks_free,
        delta_bytes_budget=report.delta_bytes_budget,
        delta_bytes_used=report.delta_bytes_used,
        residency=report.residency,
        base_fingerprint=link.welcome.base_fingerprint if link.welcome else "",
    )
    if report.HasField("step_time"):
        worker.step_time.CopyFrom(report.step_time)
    return worker
