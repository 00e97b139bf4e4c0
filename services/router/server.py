"""The router as a whole: puts its parts together, runs them, and shuts them down in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import time
from collections.abc import AsyncIterator

import grpc

from deltaserve.alongside import alongside
from deltaserve.catalog import Catalog
from deltaserve.errors import PreconditionError
from deltaserve.metrics import exposed
from deltaserve.rpc.servers import Host, serving
from deltaserve.store import Store
from deltaserve.v1 import admin_pb2, inference_pb2
from deltaserve.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from deltaserve.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from deltaserve.v1.models_pb2 import DeleteRevisionRequest, GetRevisionResponse
from services.router.admin import AdminServicer
from services.router.admission.interceptor import KeyInterceptor
from services.router.admission.reload import keep_keys
from services.router.discovery import Discovery
from services.router.dispatch import Dispatcher
from services.router.fleet import Fleet
from services.router.generation import Generations
from services.router.http.app import Api
from services.router.http.live import Live
from services.router.http.models import Models
from services.router.http.serving import http_serving
from services.router.inference import InferenceServicer
from services.router.metrics import RouterMetrics
from services.router.passthrough import SERVICE, Passthrough
from services.router.pins import keep_catalog
from services.router.placer import Placer
from services.router.rates import RateBook
from services.router.settings import RouterSettings
from services.router.targets import Targets

log = logging.getLogger(__name__)

_NAMES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    SERVICE.full_name,
)


class Router:
    """A router of its parts; `running` brings it up.

    Attributes:
        http_port: where the HTTP API is; None: nowhere.
        metrics_port: where Prometheus may ask; 0: nowhere.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self.settings = settings
        # requests resolve against what was read last: keep_catalog reads, and an unknown name reads again
        self.catalog = Catalog(Store.open(settings.store), ttl=math.inf)
        self.metrics = RouterMetrics()
        self.dispatcher = Dispatcher(settings, self.metrics)
        self.fleet = self.dispatcher.fleet
        self.rates = RateBook(asyncio.get_running_loop().time())
        self.targets = Targets(self.catalog, self.fleet)
        self.generations = Generations(settings, self.targets, self.dispatcher, self.rates, self.metrics)
        self.models = Passthrough(
            settings.compressor,
            {"GetRevision": lambda data: with_residency(data, self.fleet)},
            {"DeleteRevision": lambda data: check_idle(data, self.generations, self.fleet)},
        )
        self.inference = InferenceServicer(self.generations, self.targets, self.fleet, self.catalog, self.rates)
        self.http_port: int | None = None
        self.metrics_port = 0
        self.metrics.serve(self.fleet, self.rates, self.dispatcher)
        self._draining = False
        self.placer = Placer(settings, self.fleet, self.metrics)
        self._tasks: list[asyncio.Task[None]] = []
        self.discovery = Discovery(settings.workers, settings.resolve_seconds)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Host]:
        """Serves while the block runs; SERVING from the first moment, since requests may wait for workers."""
        settings = self.settings
        guards = [] if settings.keys is None else [KeyInterceptor(self.dispatcher.gate)]
        listening = serving(
            settings.listen, self._register, _NAMES, 1.0, interceptors=guards, reuse_port=settings.reuse_port
        )
        async with self.models, listening as host:
            self._tasks = [
                asyncio.create_task(self.fleet.follow(self.discovery.addresses())),
                asyncio.create_task(self.dispatcher.run()),
                asyncio.create_task(self.placer.run()),
                asyncio.create_task(self.generations.pacing.run()),
                asyncio.create_task(
                    keep_catalog(self.catalog, self.fleet, settings.catalog_seconds, self.placer.published)
                ),
            ]
            if settings.keys is not None:
                keeping = keep_keys(settings.keys, settings.keys_seconds, self.dispatcher.gate)
                self._tasks.append(asyncio.create_task(keeping))
            await host.set_serving(True)
            log.info("listening on port %d of %s", host.port, settings.listen)
            try:
                async with self._http(), exposed(settings.metrics_listen, self.metrics.registry) as self.metrics_port:
                    yield host
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, self.generations.shadows.close(), return_exceptions=True)

    async def until(self, stop: asyncio.Event) -> None:
        """Waits for `stop`; raises what a part of the router failed with, if one does."""
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({stopped, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done:
            task.result()

    async def drain(self, host: Host) -> None:
        """Winds down: NOT_SERVING, still admit while that spreads, refuse, and let running streams end."""
        self._draining = True
        await host.set_serving(False)
        log.info("draining: admitting for %g s more", self.settings.notice_seconds)
        await asyncio.sleep(self.settings.notice_seconds)
        self.generations.refuse()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.grace_seconds):
                await self.generations.idle()

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[None]:
        """Serves the HTTP API while the block runs, if there is to be one."""
        address = self.settings.http_listen
        if address is None:
            yield
            return
        models = Models(self.catalog, self.fleet, self.targets, int(time.time()))
        live = Live(self.catalog, self.dispatcher, self.generations, self.rates, self.models)
        api = Api(self.generations, models, self.inference.tokenize, lambda: not self._draining, live.routes())
        async with (
            alongside(live.run()),
            http_serving(address, api.app(), 1.0, reuse_port=self.settings.reuse_port) as self.http_port,
        ):
            log.info("HTTP on port %d of %s", self.http_port, address)
            yield

    def _register(self, server: grpc.aio.Server) -> None:
        add_InferenceServiceServicer_to_server(self.inference, server)
        add_AdminServiceServicer_to_server(
            AdminServicer(self.targets, self.dispatcher, self.placer, self.generations.shadows), server
        )
        self.models.register(server)


async def run(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then drains."""
    router = Router(settings)
    async with router.running() as host:
        gc.collect()
        gc.freeze()  # modules are for ever: full collections need not walk them, 28 ms each, while streams wait
        await router.until(stop)
        await router.drain(host)


def with_residency(data: bytes, fleet: Fleet) -> bytes:
    """Returns a serialised GetRevisionResponse with the residency that workers report added."""
    response = GetRevisionResponse.FromString(data)
    _, model, _, revision = response.revision.name.split("/")
    wanted = f"{model}@{revision}"
    response.revision.residency.extend(
        r for link in fleet.links() for r in link.report.residency if r.revision == wanted
    )
    return response.SerializeToString()


def check_idle(data: bytes, generations: Generations, fleet: Fleet) -> None:
    """Raises PreconditionError when a serialised DeleteRevisionRequest, not forced, names a revision that streams use.

    Streams of this router count, waiting ones included, and those of others that workers report.
    """
    request = DeleteRevisionRequest.FromString(data)
    parts = request.name.split("/")
    if request.force or len(parts) != 4:
        return
    revision = f"{parts[1]}@{parts[3]}"
    reported = sum(r.in_use for link in fleet.links() for r in link.report.residency if r.revision == revision)
    if streams := max(generations.streams[revision], reported):
        raise PreconditionError(
            f"{streams} streams use {revision}; wait for their end, or force it: they go on to their end, but none can "
            "move to another worker any more",
            streams=streams,
        )
