"""A router with the HTTP API over a scripted worker, and clients of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from openai import AsyncOpenAI

from services.router.server import Router
from tests.services.router.conftest import ScriptedWorker, connected, routing, serve


@contextlib.asynccontextmanager
async def http_routing(store: str, worker: ScriptedWorker, **settings: Any) -> AsyncIterator[tuple[Router, str]]:
    """Runs a worker and a router; yields the router and the address of its HTTP API."""
    async with (
        serve(worker) as port,
        routing(store, [f"127.0.0.1:{port}"], http_listen="127.0.0.1:0", **settings) as (router, _),
    ):
        await connected(router)
        yield router, f"http://127.0.0.1:{router.http_port}"


def sdk(url: str) -> AsyncOpenAI:
    """The official client, which does not try again by itself."""
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=20)


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=20)
