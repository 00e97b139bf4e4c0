"""InferenceService: translates calls, nothing more."""

# ruff: noqa: N802, ARG002 - names and arguments are the proto's

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from deltaserve.catalog import Catalog
from deltaserve.errors import InvalidArgumentError, UnavailableError
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1.inference_pb2_grpc import InferenceServiceServicer
from services.router.fleet import Fleet
from services.router.generation import Generations
from services.router.listing import list_page
from services.router.rates import RateBook
from services.router.routing import choose
from services.router.targets import Targets

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Context = grpc.aio.ServicerContext[Any, Any]

_TOKENIZE_SECONDS = 30.0  # a delta's tokenizer may have to come from the store first
_ANY_LOAD = 1 << 30  # tokenizing takes no place in a step


class InferenceServicer(InferenceServiceServicer):
    """See inference.proto."""

    def __init__(
        self, generations: Generations, targets: Targets, fleet: Fleet, catalog: Catalog, rates: RateBook
    ) -> None:
        self._generations = generations
        self._targets = targets
        self._fleet = fleet
        self._catalog = catalog
        self._rates = rates

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """Writes frames itself: a generator could not be stopped while a slow client holds up a write."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        caller = self._generations.caller(metadata.get("authorization"))
        await self._generations.run(
            request, context.write, context.time_remaining(), metadata.get("traceparent"), caller
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Asks the worker that would serve the model."""
        return await self.tokenize(request, context.time_remaining())

    async def tokenize(self, request: pb.TokenizeRequest, remaining: float | None = None) -> pb.TokenizeResponse:
        """Asks the worker that would serve the model, for at most `remaining` seconds."""
        if request.WhichOneof("prompt") is None:
            raise InvalidArgumentError("the request has no prompt; set one of text, chat, token_ids", field="prompt")
        target = await self._targets.resolve(request.model)
        links = {link.name: link for link in self._fleet.serving(target.base_fingerprint)}
        views = [link.view() for link in links.values()]
        chosen = choose(views, target.revision, target.delta_bytes, _ANY_LOAD)
        if chosen is None:
            raise UnavailableError(f"no worker that serves the base of model {target.model} is connected")
        seconds = min(remaining or _TOKENIZE_SECONDS, _TOKENIZE_SECONDS)
        return await links[chosen.name].tokenize(target.revision, request, seconds)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Lists what the store publishes and the workers tell."""
        records = await self._catalog.models()
        residency = [r for link in self._fleet.links() for r in link.report.residency]
        now = asyncio.get_running_loop().time()
        return list_page(request, list(self._fleet.bases()), records, residency, self._rates, now)
