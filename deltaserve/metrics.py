"""Metrics of a service process: a registry, and an endpoint that Prometheus scrapes.

Services count what happens where it happens, once a request or step, and tell how they *are* when they are scraped: a
collector is a function that returns samples. Collectors run on the event loop, so they may read what lives there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from deltaserve.errors import InvalidArgumentError, UnavailableError

log = logging.getLogger(__name__)

# seconds; from a decode step on a GPU to a cold start from a slow store
REQUEST_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STAGE_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)

_REQUEST_SECONDS = 5.0
_HEAD_BYTES = 16 << 10


class Scraped(Collector):
    """A collector of a function that returns metrics."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics as they are now."""
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        """Nothing: samples need not exist before the service runs."""
        return ()


def registry() -> CollectorRegistry:
    """Returns a registry that tells of the process already: memory, CPU, open files, garbage collection."""
    # a series of start times beside every counter: Prometheus has no use for it
    disable_created_metrics()  # type: ignore[no-untyped-call]
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


def gauge(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    """Returns a gauge of one value, or of one for each value of `label`."""
    return _filled(GaugeMetricFamily(name, text, labels=[label] if label else None), value)


def counter(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    """Returns a counter, as `gauge` does; `name` is without `_total`."""
    return _filled(CounterMetricFamily(name, text, labels=[label] if label else None), value)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, value: float | Mapping[str, float]
) -> GaugeMetricFamily | CounterMetricFamily:
    values = value.items() if isinstance(value, Mapping) else [("", value)]
    for key, number in values:
        family.add_metric([key] if key else [], number)
    return family


@contextlib.asynccontextmanager
async def exposed(address: str | None, of: CollectorRegistry) -> AsyncIterator[int]:
    """Serves `GET /metrics` while the block runs, in Prometheus's text format or OpenMetrics, as asked for.

    Args:
        address: host:port, port 0 picks a free one; None: nowhere.
        of: what to tell.

    Yields:
        The port; 0 when there is none.

    Raises:
        InvalidArgumentError: `address` is no host:port.
        UnavailableError: it cannot be bound.
    """
    if address is None:
        yield 0
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgumentError(f"metrics_listen is {address!r}; expected host:port", field="metrics_listen")
    try:
        server = await asyncio.start_server(_Endpoint(of).answer, host.strip("[]"), int(port), limit=_HEAD_BYTES)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {address}: {error}; is the port taken?", address=address, retry_seconds=None
        ) from error
    bound: int = server.sockets[0].getsockname()[1]
    log.info("metrics on port %d of %s", bound, address)
    try:
        yield bound
    finally:
        server.close()


class _Endpoint:
    """As little HTTP as a scrape needs: a worker has no HTTP server otherwise."""

    def __init__(self, of: CollectorRegistry) -> None:
        self._registry = of

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                writer.write(self._response(head))
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            log.debug("a scrape was cut off: %s", error)
        finally:
            writer.close()

    def _response(self, head: str) -> bytes:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in {"GET", "HEAD"} or path != "/metrics":
            return _http("404 Not Found", "text/plain; charset=utf-8", b"GET /metrics is all there is\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        encode, content_type = choose_encoder(fields.get("accept", ""))
        try:
            body = encode(self._registry)
        except Exception:  # a bug in a collector must be seen, and must not look like a service without metrics
            log.exception("metrics could not be collected")
            return _http("500 Internal Server Error", "text/plain; charset=utf-8", b"see the log\n")
        return _http("200 OK", content_type, body if method == "GET" else b"")


def _http(status: str, content_type: str, body: bytes) -> bytes:
    fields = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body
