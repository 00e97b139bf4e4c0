"""Addresses from lists and names."""

from __future__ import annotations

import asyncio
import socket

import pytest

from deltaserve.errors import InvalidArgumentError
from services.router.discovery import Discovery


async def test_a_fixed_list_is_told_once() -> None:
    found = [a async for a in Discovery(["h:1", "[::1]:2"], 0.01).addresses()]
    assert found == [frozenset({"h:1", "[::1]:2"})]


async def test_names_are_resolved_again_and_kept_while_dns_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    answers: list[list[str] | None] = [["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], None, ["10.0.0.2"]]

    async def resolver(host: str, port: int, **_: object) -> list[tuple[object, ...]]:  # DNS is the one part outside
        found = answers.pop(0)
        if found is None:
            raise socket.gaierror("no answer")
        assert (host, port) == ("workers", 7000)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]

    monkeypatch.setattr(loop, "getaddrinfo", resolver)
    seen = []
    async for addresses in Discovery(["dns:///workers:7000", "h:1"], 0.01).addresses():
        seen.append({a for a in addresses if a != "h:1"})
        if not answers:
            break
    one, two = "10.0.0.1:7000", "10.0.0.2:7000"
    assert seen == [{one}, {one, two}, {one, two}, {two}]


async def test_the_systems_resolver_is_used() -> None:
    async for addresses in Discovery(["dns:///localhost:7000"], 60).addresses():
        assert addresses in ({"127.0.0.1:7000"}, {"[::1]:7000"})
        break


@pytest.mark.parametrize("entry", ["host", "host:", ":1", "host:0", "host:99999", "dns:///host", "http://host/x"])
def test_bad_entries_are_named(entry: str) -> None:
    with pytest.raises(InvalidArgumentError, match="host:port"):
        Discovery([entry], 1)
