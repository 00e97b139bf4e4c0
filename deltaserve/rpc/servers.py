"""Server set-up of every service: error statuses, spans, health v1, reflection v1 and v1alpha, limits, signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as aio_health
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as aio_reflection

from deltaserve.errors import UnavailableError
from deltaserve.rpc.channels import MAX_MESSAGE_BYTES
from deltaserve.rpc.interceptors import ErrorInterceptor
from deltaserve.rpc.tracing import TraceInterceptor

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # routers ping workers every second, with and without calls; the `min_recv_...` spelling has no effect
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


@dataclass
class Host:
    """A started server.

    Attributes:
        server: the gRPC server.
        port: the port it listens on, also when 0 was asked for.
    """

    server: grpc.aio.Server
    port: int
    _health: aio_health.HealthServicer
    _names: tuple[str, ...]

    async def set_serving(self, serving: bool) -> None:
        """Tells health checks whether to send requests here."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)


@contextlib.asynccontextmanager
async def serving(
    address: str,
    register: Callable[[grpc.aio.Server], None],
    service_names: Sequence[str],
    grace_seconds: float = 5.0,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    *,
    reuse_port: bool = False,
) -> AsyncIterator[Host]:
    """Runs a server while the block runs; NOT_SERVING until `set_serving(True)`.

    On exit no new call is accepted, and running ones get `grace_seconds` before they are cancelled.

    Args:
        address: host:port to listen on; port 0 picks a free one.
        register: adds the servicers to the server.
        service_names: full names, for health and reflection.
        grace_seconds: see above.
        interceptors: asked before handlers; errors of handlers become statuses before they come here.
        reuse_port: other processes of the same user may listen there too; the kernel spreads connections.

    Raises:
        UnavailableError: the address cannot be bound.
    """
    options = [*_OPTIONS, ("grpc.so_reuseport", int(reuse_port))]
    server = grpc.aio.server(interceptors=[*interceptors, ErrorInterceptor(), TraceInterceptor()], options=options)
    register(server)
    health = aio_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (*service_names, HEALTH)
    _add_reflection(server, (*names, reflection.SERVICE_NAME, _REFLECTION_V1))
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise UnavailableError(f"cannot listen on {address}: {error}; is the port taken?", address=address) from error
    host = Host(server, port, health, names)
    await host.set_serving(False)
    await server.start()
    try:
        yield host
    finally:
        await host.set_serving(False)
        await server.stop(grace_seconds)


def _add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Serves reflection v1alpha (the library's) and v1 (the same messages under the name newer tools ask for)."""
    servicer = aio_reflection.ReflectionServicer(service_names=names)
    method = "ServerReflectionInfo"
    for service in (reflection.SERVICE_NAME, _REFLECTION_V1):
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))


def run_until_signal(main: Callable[[asyncio.Event], Coroutine[Any, Any, int | None]]) -> int:
    """Runs a service on uvloop; `main` gets an event that SIGTERM and SIGINT set, and returns the exit status.

    A second signal cancels `main`: the impatient way out.
    """
    import uvloop

    async def runner() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main(stop))

        def on_signal() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            return await task or 0
        except asyncio.CancelledError:
            return 130

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        return loop_runner.run(runner())
