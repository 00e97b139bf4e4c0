"""An HTTP server in the event loop of the process that runs it: no signals, threads or processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp

from deltaserve.errors import InvalidArgumentError, UnavailableError

_IDLE_SECONDS = 75  # longer than clients keep connections, so that it is they who close
_BACKLOG = 2048


class _Server(uvicorn.Server):
    """uvicorn's, except that signals are ours."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextlib.asynccontextmanager
async def http_serving(
    address: str, app: ASGIApp, grace_seconds: float, *, reuse_port: bool = False
) -> AsyncIterator[int]:
    """Serves `app` while the block runs, and yields the port.

    On exit no new connection is accepted, and running requests get `grace_seconds` before they are cancelled.

    Args:
        address: host:port to listen on; port 0 picks a free one.
        app: what to serve.
        grace_seconds: see above.
        reuse_port: other processes of the same user may listen there too; the kernel spreads connections.

    Raises:
        InvalidArgumentError: `address` is no host:port.
        UnavailableError: it cannot be bound.
    """
    listener = _bind(address, reuse_port)
    port: int = listener.getsockname()[1]
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve([listener]))
    listening = asyncio.create_task(server.listening.wait())
    try:
        await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield port
    finally:
        listening.cancel()
        server.should_exit = True
        await running


def _bind(address: str, reuse_port: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgumentError(f"http_listen is {address!r}; expected host:port", field="http_listen")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, int(port)), family=family, backlog=_BACKLOG, reuse_port=reuse_port)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {address}: {error}; is the port taken?", address=address, retry_seconds=None
        ) from error
    listener.setblocking(False)
    return listener
