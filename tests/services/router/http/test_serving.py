import asyncio
import socket

import httpx
import pytest
from starlette.responses import PlainTextResponse

from deltaserve.errors import InvalidArgumentError, UnavailableError
from services.router.http.serving import http_serving

APP = PlainTextResponse("here")


async def test_a_free_port_is_found_and_given_back() -> None:
    async with http_serving("127.0.0.1:0", APP, 1.0) as port, httpx.AsyncClient() as http:
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "here"
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://127.0.0.1:{port}/")


async def test_signals_stay_ours() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    async with http_serving("127.0.0.1:0", APP, 1.0):
        assert signal.getsignal(signal.SIGTERM) is before


async def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=address):
            async with http_serving(address, APP, 1.0):
                pass


@pytest.mark.parametrize("address", ["nowhere", ":80", "h:http", "h:70000"])
async def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="host:port"):
        async with http_serving(address, APP, 1.0):
            pass


async def test_idle_connections_do_not_hold_up_the_end() -> None:
    async with asyncio.timeout(60):
        async with httpx.AsyncClient() as http, http_serving("127.0.0.1:0", APP, 1.0) as port:
            await http.get(f"http://127.0.0.1:{port}/")
