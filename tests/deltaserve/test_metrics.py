import asyncio
import random
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.core import Metric

from deltaserve import metrics
from deltaserve.errors import InvalidArgumentError, UnavailableError


async def _get(port: int, path: str = "/metrics") -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.get(f"http://127.0.0.1:{port}{path}")


async def test_what_is_collected_is_as_it_is_at_the_scrape() -> None:
    registry = metrics.registry()
    state: dict[str, float] = {}

    def collect() -> Iterator[Metric]:
        yield metrics.gauge("some_depth", "How many", state, "queue")
        yield metrics.counter("some_events", "So many", sum(state.values()))

    registry.register(metrics.Scraped(collect))
    async with metrics.exposed("127.0.0.1:0", registry) as port:
        for _ in range(3):
            state[f"q{random.randrange(100)}"] = random.randrange(1000)
            text = (await _get(port)).text
            for queue, depth in state.items():
                assert f'some_depth{{queue="{queue}"}} {float(depth)}' in text
            assert f"some_events_total {sum(state.values()):.1f}" in text
    assert "process_cpu_seconds_total" in text
    assert "_created" not in text


async def test_a_collector_that_fails_is_an_error_and_not_the_end() -> None:
    registry, broken = metrics.registry(), [True]

    def collect() -> Iterator[Metric]:
        if broken:
            raise RuntimeError("not now")
        yield metrics.gauge("fine", "Fine", 1)

    registry.register(metrics.Scraped(collect))
    async with metrics.exposed("127.0.0.1:0", registry) as port:
        assert (await _get(port)).status_code == 500
        broken.clear()
        assert "fine 1.0" in (await _get(port)).text


async def test_clients_that_say_nothing_sensible_do_no_harm() -> None:
    async with metrics.exposed("127.0.0.1:0", metrics.registry()) as port:
        for said in (b"", b"\r\n\r\n", b"x" * 40_000, bytes(range(256)) + b"\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            writer.write_eof()
            answer = await reader.read()
            assert not answer.startswith(b"HTTP/1.1 200")
            writer.close()
        assert (await _get(port)).status_code == 200


async def test_nowhere_means_nowhere_and_bad_addresses_are_told() -> None:
    async with metrics.exposed(None, metrics.registry()) as port:
        assert port == 0
    with pytest.raises(InvalidArgumentError, match="metrics_listen is 'x'; expected host:port"):
        async with metrics.exposed("x", metrics.registry()):
            pass
    async with metrics.exposed("127.0.0.1:0", metrics.registry()) as port:
        with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with metrics.exposed(f"127.0.0.1:{port}", metrics.registry()):
                pass
