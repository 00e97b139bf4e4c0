"""The live page: its files, and the state of the system as JSON that it draws."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deltaserve import __version__
from deltaserve.aliases import AliasVersion
from deltaserve.catalog import Catalog, ModelRecord
from deltaserve.errors import DeltaServeError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from deltaserve.report.page import render
from deltaserve.v1 import models_pb2
from deltaserve.v1.inference_pb2 import Tier as TierValue
from services.router.dispatch import Dispatcher
from services.router.generation import Generations
from services.router.http.credentials import BASIC, authorization
from services.router.http.samples import SAMPLE_SECONDS, Samples
from services.router.link import WorkerLink
from services.router.passthrough import Passthrough
from services.router.rates import RateBook

log = logging.getLogger(__name__)

_JOBS = 12  # shown
_JOBS_SECONDS = 2.0  # how old they may be
_TOTAL = "\0total"
_TOKENS, _REQUESTS, _WAITING = f"{_TOTAL}/tokens", f"{_TOTAL}/requests", f"{_TOTAL}/waiting"  # no model's names
_TYPES = {"index.html": "text/html", "live.css": "text/css", "live.js": "text/javascript"}
# everything comes from here, and nothing in the page's data can become a script
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
_REPORT_HEADERS = _HEADERS | {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class Live:
    """What the page shows; `run` samples what it draws as lines."""

    def __init__(
        self, catalog: Catalog, dispatcher: Dispatcher, generations: Generations, rates: RateBook, models: Passthrough
    ) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._generations = generations
        self._rates = rates
        self._models = models
        self._samples = Samples()
        self._jobs: list[dict[str, Any]] = []
        self._jobs_at = float("-inf")
        self._started = time.time()
        self._tokens = self._asked = 0
        self._tokens_rate = self._requests_rate = 0.0

    def routes(self) -> list[Route]:
        """Returns the page's routes."""
        return [
            Route("/", self.page),
            Route("/live/state", self.state),
            Route("/live/report/{revision}", self.report),
            Route("/live/{name}", self.page),
        ]

    async def run(self) -> None:
        """Samples until cancelled."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now = loop.time()
            self._sample(now, now - at)
            at = now

    async def page(self, request: Request) -> Response:
        """Serves the files."""
        name = request.path_params.get("name", "index.html")
        if name == "index.html" and (refused := self._refused(request)) is not None:
            return refused
        if name not in _TYPES:
            return Response(f"{name[:80]} is no file of the live page", 404, media_type="text/plain")
        data = files(__package__).joinpath("page", name).read_bytes()
        return Response(data, media_type=f"{_TYPES[name]}; charset=utf-8", headers=_HEADERS)

    async def report(self, request: Request) -> Response:
        """Serves the quality report of `<model>@<revision>`."""
        if (refused := self._refused(request)) is not None:
            return refused
        try:
            name = await self._catalog.resolve(request.path_params["revision"])
            manifest = await self._catalog.manifest(name)
            if manifest.report is None:
                raise NotFoundError(f"{name} has no quality report", kind="report", name=str(name))
        except DeltaServeError as error:
            return Response(error.message, 404, media_type="text/plain")
        return Response(render(manifest.report, str(name)), media_type="text/html", headers=_REPORT_HEADERS)

    async def state(self, request: Request) -> Response:
        """Serves everything that the page shows."""
        if (refused := self._refused(request)) is not None:
            return refused
        try:
            records = await self._catalog.models()
            aliases = await self._catalog.aliases()
        except DeltaServeError as error:
            return Response(msgspec.json.encode({"error": error.message}), 503, media_type="application/json")
        now = asyncio.get_running_loop().time()
        links = self._dispatcher.fleet.links()
        state = {
            "version": __version__,
            "uptime": time.time() - self._started,
            "tokens_per_second": self._tokens_rate,
            "requests_per_second": self._requests_rate,
            "waiting": self._dispatcher.waiting,
            "running": sum(len(link.flights) for link in links),
            "lines": {
                "seconds": SAMPLE_SECONDS,
                "tokens": self._samples.line(_TOKENS),
                "requests": self._samples.line(_REQUESTS),
                "waiting": self._samples.line(_WAITING),
            },
            "models": [self._base(name, now) for name in sorted(self._dispatcher.fleet.bases())]
            + [self._model(record, now) for record in records],
            "workers": [_worker(link) for link in links],
            "aliases": [_alias(name, held) for name, held in aliases.items()],
            "shadows": self._shadows(),
            "jobs": await self._recent_jobs(now),
        }
        return Response(
            msgspec.json.encode(state), media_type="application/json", headers={"Cache-Control": "no-store"}
        )

    def _refused(self, request: Request) -> Response | None:
        """Returns what a caller without an admin's key gets, where there are keys."""
        try:
            self._dispatcher.gate.quotas.book.admin(authorization(request))
        except UnauthenticatedError as error:
            return Response(error.message, 401, {"WWW-Authenticate": BASIC}, media_type="text/plain")
        except PermissionDeniedError as error:
            return Response(error.message, 403, media_type="text/plain")
        return None

    def _sample(self, now: float, seconds: float) -> None:
        flying = [f for link in self._dispatcher.fleet.links() for f in link.flights.values() if not f.background]
        tokens = self._generations.tokens_ended + sum(flight.output.tokens for flight in flying)
        names = self._rates.names()
        rates = {name: self._rates.rates(name, now) for name in names}
        asked = sum(rate.total for rate in rates.values())
        # streams between two workers are on no link for a moment: their tokens must not count as negative
        self._tokens_rate = max(0, tokens - self._tokens) / seconds
        self._requests_rate = max(0, asked - self._asked) / seconds
        self._tokens, self._asked = max(tokens, self._tokens), asked
        values = {name: rate.short_rate for name, rate in rates.items() if rate.short_rate > 1e-4}
        total = {_TOKENS: self._tokens_rate, _REQUESTS: self._requests_rate, _WAITING: float(self._dispatcher.waiting)}
        self._samples.add(values | total)

    def _base(self, name: str, now: float) -> dict[str, Any]:
        return {"name": name, "base": True} | self._rate(name, now)

    def _model(self, record: ModelRecord, now: float) -> dict[str, Any]:
        manifest, name = record.manifest, record.latest
        quality = (manifest.report or {}).get("quality") or {}
        return {
            "name": record.name,
            "base": False,
            "revision": name.revision,
            "revisions": record.revisions,
            "delta_bytes": manifest.sizes.delta_bytes,
            "checkpoint_bytes": manifest.sizes.checkpoint_bytes,
            "aliases": record.aliases,
            "pinned": record.pinned,
            "agreement": _number(quality.get("top1_agreement")),
            "kl": _number(quality.get("kl")),
            "report": manifest.report is not None,
            "streams": self._generations.streams[str(name)],
        } | self._rate(record.name, now)

    def _rate(self, name: str, now: float) -> dict[str, Any]:
        rates = self._rates.rates(name, now)
        return {
            "rate": rates.short_rate,
            "requests": rates.total,
            "in_flight": rates.in_flight,
            "line": self._samples.line(name),
        }

    def _shadows(self) -> list[dict[str, Any]]:
        return [
            {
                "primary": primary,
                "shadow": shadow,
                "sampled": counts.sampled,
                "compared": counts.compared,
                "identical": counts.identical,
                "agreement": counts.agreement,
                "mean_divergence": counts.mean_divergence,
            }
            for (primary, shadow), counts in sorted(self._generations.shadows.pairs.items())
        ]

    async def _recent_jobs(self, now: float) -> list[dict[str, Any]]:
        """Returns the newest jobs; what was known last while the compressor is away."""
        if now - self._jobs_at > _JOBS_SECONDS:
            self._jobs_at = now
            request = models_pb2.ListJobsRequest(page_size=_JOBS)
            try:
                data = await self._models.call("ListJobs", request.SerializeToString(), seconds=2.0)
            except DeltaServeError as error:
                log.debug("no jobs for the live page: %s", error.message)
            else:
                self._jobs = [_job(job) for job in models_pb2.ListJobsResponse.FromString(data).jobs]
        return self._jobs


def _worker(link: WorkerLink) -> dict[str, Any]:
    report = link.report
    return {
        "name": link.name,
        "address": link.address,
        "state": ("serving" if link.serving else "draining") if link.connected else "away",
        "running": report.running,
        "waiting": report.waiting,
        "places": link.welcome.max_running if link.welcome else 0,
        "kv_total": report.kv_blocks_total,
        "kv_free": report.kv_blocks_free,
        "memory": [report.delta_bytes_used, report.delta_bytes_budget],
        "disk": [report.disk_bytes_used, report.disk_bytes_budget],
        "step_ms": report.step_time.ToNanoseconds() / 1e6,
        "residency": [
            {"revision": r.revision, "tier": TierValue.Name(r.tier)[5:].lower(), "bytes": r.bytes, "in_use": r.in_use}
            for r in report.residency
        ],
        "arriving": [
            {"revision": a.revision, "share": a.bytes_done / max(a.bytes_total, 1), "to_memory": a.to_memory}
            for a in report.arriving
        ],
    }


def _alias(name: str, held: AliasVersion) -> dict[str, Any]:
    total = sum(route.weight for route in held.routes)
    return {
        "name": name,
        "version": held.number,
        "routes": [{"target": route.target, "share": route.weight / total} for route in held.routes],
        "shadow": {"target": held.shadow.target, "share": held.shadow.share} if held.shadow else None,
    }


def _job(job: models_pb2.Job) -> dict[str, Any]:
    progress = job.progress
    return {
        "id": job.job_id,
        "model": job.spec.model,
        "state": models_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower(),
        "stage": models_pb2.JobStage.Name(progress.stage).removeprefix("JOB_STAGE_").lower(),
        "layers": [progress.layers_done, progress.layers_total],
        "bytes_out": progress.bytes_out,
        "eta": progress.eta.ToNanoseconds() / 1e9 if progress.HasField("eta") else None,
        "revision": _revision(job.revision_name.split("/")),
        "updated": job.update_time.ToNanoseconds() / 1e9,
    }


def _revision(parts: Sequence[str]) -> str:
    return f"{parts[1]}@{parts[3]}" if len(parts) == 4 else ""


def _number(value: object) -> float | None:
    """Returns a figure of a report, which is trusted in nothing, if it is one."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
