"""The HTTP application: routes, and from requests to answers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from deltaserve import __version__
from deltaserve.errors import DeltaServeError, InternalError
from deltaserve.v1.inference_pb2 import GenerateRequest, TokenizeRequest, TokenizeResponse
from services.router.admission.keys import Caller
from services.router.generation import Generations
from services.router.http.answering import Answer
from services.router.http.body import decode, read_body
from services.router.http.credentials import authorization
from services.router.http.errors import RequestError, error_response
from services.router.http.fields import ChatOptions, CompletionOptions, Options
from services.router.http.models import Models
from services.router.http.reply import Reply, Writer
from services.router.http.translation import chat_request, completion_requests
from services.router.http.writers import ChatWriter, CompletionWriter

log = logging.getLogger(__name__)

Tokenize = Callable[[TokenizeRequest], Awaitable[TokenizeResponse]]
Endpoint = Callable[[Request], Awaitable[Response]]

_GONE = 499  # nginx's status for a client that left; nobody reads it


class Api:
    """The endpoints."""

    def __init__(
        self,
        generations: Generations,
        models: Models,
        tokenize: Tokenize,
        is_serving: Callable[[], bool],
        page: Sequence[Route] = (),
    ) -> None:
        """Serves what `generations` runs; `is_serving` tells whether to send requests here, `page` is for people."""
        self._generations = generations
        self._models = models
        self._tokenize = tokenize
        self._is_serving = is_serving
        self._page = page

    def app(self) -> Starlette:
        """Returns the ASGI application."""
        routes = [
            Route("/v1/models", _safe(self.list_models)),
            Route("/v1/models/{model:path}", _safe(self.get_model)),
            Route("/v1/completions", _safe(self.complete), methods=["POST"]),
            Route("/v1/chat/completions", _safe(self.chat), methods=["POST"]),
            Route("/health", self.health),
            Route("/version", self.version),
            *self._page,
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    async def list_models(self, request: Request) -> Response:
        """Lists everything that `model` may name."""
        self._caller(request)
        return _json(await self._models.listing())

    async def get_model(self, request: Request) -> Response:
        """Returns one of them."""
        self._caller(request)
        return _json(await self._models.one(request.path_params["model"]))

    async def complete(self, request: Request) -> Response:
        """Goes on with prompts."""
        caller = self._caller(request)
        options = decode(await read_body(request), CompletionOptions)
        requests = completion_requests(options)
        with_logprobs = options.logprobs is not None
        echoes = [await self._text(r) if options.echo else "" for r in requests]
        writers: list[Writer] = [CompletionWriter(echo, with_logprobs) for echo in echoes for _ in range(_n(options))]
        reply = Reply(
            id=options.request_id or f"cmpl-{secrets.token_hex(12)}",
            model=options.model,
            kind="text_completion",
            chunk_kind="text_completion",
            with_logprobs=with_logprobs,
            writers=writers,
            prompts=len(requests),
        )
        return self._answer(request, options, requests, reply, caller)

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        caller = self._caller(request)
        options = decode(await read_body(request), ChatOptions)
        translated = chat_request(options)
        reply = Reply(
            id=options.request_id or f"chatcmpl-{secrets.token_hex(12)}",
            model=options.model,
            kind="chat.completion",
            chunk_kind="chat.completion.chunk",
            with_logprobs=bool(options.logprobs),
            writers=[ChatWriter(bool(options.logprobs)) for _ in range(_n(options))],
            prompts=1,
        )
        return self._answer(request, options, [translated], reply, caller)

    async def health(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """Tells whether to send requests here: 200, or 503 while the router winds down."""
        serving = self._is_serving()
        return _json({"status": "serving" if serving else "draining"}, 200 if serving else 503)

    async def version(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint's signature
        """Tells the version."""
        return _json({"version": __version__})

    def _caller(self, request: Request) -> Caller:
        return self._generations.caller(authorization(request))

    def _answer(
        self, request: Request, options: Options, requests: list[GenerateRequest], reply: Reply, caller: Caller
    ) -> Answer:
        for place, translated in enumerate(requests):
            translated.client_request_id = reply.id if len(requests) == 1 else f"{reply.id}-{place}"
        stream = options.stream_options
        return Answer(
            self._generations,
            requests,
            reply,
            request.headers.get("traceparent"),
            stream=bool(options.stream),
            with_usage=bool(stream and stream.include_usage),
            caller=caller,
        )

    async def _text(self, request: GenerateRequest) -> str:
        """Returns a prompt's text, for echo."""
        if request.HasField("text"):
            return request.text
        asked = TokenizeRequest(model=request.model, token_ids=request.token_ids)
        return "".join((await self._tokenize(asked)).pieces)


def _n(options: Options) -> int:
    """Returns the number of choices, as far as it can be: the worker refuses others."""
    return max(1, min(options.n or 1, 16))


def _safe(endpoint: Endpoint) -> Endpoint:
    """Returns the endpoint with errors as responses."""

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except DeltaServeError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:  # the outermost frame of a request
            log.exception("%s %s failed", request.method, request.url.path)
            return error_response(InternalError(f"internal error of the router: {type(error).__name__}: {error}"))

    return call


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers what no endpoint took."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = f"{request.method} {request.url.path}"
    text = f"{what} is not served here; see docs/openai.md for what is"
    return error_response(RequestError(text, code="unknown_url", status=status))


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
