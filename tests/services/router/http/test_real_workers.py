"""A stream over HTTP whose worker is killed: it goes on elsewhere, in its grammar, as if nothing had happened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.services.router.conftest import routing, until
from tests.services.router.test_real_worker import base, real_worker  # noqa: F401 - `base` is a fixture

from .conftest import sdk

ASKED = {
    "model": "rnd",
    "prompt": "a form",
    "seed": 5,
    "max_tokens": 300,
    "extra_body": {"response_format": {"type": "regex", "regex": "([a-f]{9}-){24}end"}},
}


async def _whole(api: AsyncOpenAI) -> str:
    done = await api.completions.create(**ASKED)  # type: ignore[call-overload]
    assert done.choices[0].finish_reason == "stop"
    return str(done.choices[0].text)


@pytest.mark.slow
async def test_a_constrained_stream_goes_on_after_a_kill(base: Path, store: str) -> None:  # noqa: F811
    async with (
        real_worker(base, store, "one") as (first, address),
        real_worker(base, store, "two") as (second, other),
        routing(store, [address, other], http_listen="127.0.0.1:0") as (router, _),
        sdk(f"http://127.0.0.1:{router.http_port}") as api,
    ):
        await until(lambda: sum(link.serving for link in router.fleet.links()) == 2, 90)
        expected = await _whole(api)
        assert re.fullmatch("([a-f]{9}-){24}end", expected)
        text, killed = "", False
        async for event in await api.completions.create(**ASKED, stream=True):  # type: ignore[call-overload]
            text += event.choices[0].text
            if len(text) > 20 and not killed:
                killed = True
                busy = next(link for link in router.fleet.links() if link.flights)
                (first if busy.name == "one" else second).kill()
        assert killed
        assert text == expected
