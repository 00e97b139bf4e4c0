"""API keys and quotas over HTTP, as OpenAI's SDK sees them."""

from __future__ import annotations

import secrets
from pathlib import Path

import openai
import pytest

from services.router.admission.keys import digest
from tests.services.router.conftest import BASE_NAME, ScriptedWorker

from .conftest import client, http_routing


async def test_401_and_429_are_those_of_openai(store: str, worker: ScriptedWorker, tmp_path: Path) -> None:
    key, path = secrets.token_urlsafe(), tmp_path / "keys.toml"
    path.write_text(f'[[keys]]\nname = "a"\nsha256 = "{digest(key)}"\nrequests_per_second = 0.02\nburst_seconds = 50\n')
    async with http_routing(store, worker, keys=path) as (_, url):
        wrong = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        right = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        async with wrong, right:
            with pytest.raises(openai.AuthenticationError) as refused:
                await wrong.completions.create(model=BASE_NAME, prompt="a")
            assert (refused.value.code, refused.value.type) == ("invalid_api_key", "invalid_request_error")
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
            answer = await right.completions.create(model=BASE_NAME, prompt="a b")
            assert answer.choices[0].text == "ab"
            with pytest.raises(openai.RateLimitError) as limited:
                await right.completions.create(model=BASE_NAME, prompt="a", stream=True)
            assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "rate_limit_error")
            assert 40 < int(limited.value.response.headers["retry-after"]) <= 50
        async with client(url) as plain:
            assert (await plain.get("/health")).status_code == 200
            response = await plain.post("/v1/chat/completions", json={"model": BASE_NAME, "messages": []})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"


async def test_the_live_page_needs_an_admin_s_key(store: str, worker: ScriptedWorker, tmp_path: Path) -> None:
    admin, plain, path = secrets.token_urlsafe(), secrets.token_urlsafe(), tmp_path / "keys.toml"
    path.write_text(
        f'[[keys]]\nname = "a"\nadmin = true\nsha256 = "{digest(admin)}"\n'
        f'[[keys]]\nname = "b"\nsha256 = "{digest(plain)}"\n'
    )
    async with http_routing(store, worker, keys=path) as (_, url), client(url) as http:
        for place in ("/", "/live/state", "/live/report/x@1"):
            refused = await http.get(place)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic ")
            assert (await http.get(place, auth=("", plain))).status_code == 403
            assert (await http.get(place, auth=("me", "no key"))).status_code == 401
        assert (await http.get("/", auth=("me", admin))).status_code == 200
        assert "models" in (await http.get("/live/state", headers={"authorization": f"Bearer {admin}"})).json()
        # the playground asks the API as the page does; another site cannot make the browser do it
        body = {"model": BASE_NAME, "prompt": "a b"}
        assert (await http.post("/v1/completions", json=body, auth=("me", admin))).status_code == 200
        foreign = {"sec-fetch-site": "cross-site"}
        assert (await http.post("/v1/completions", json=body, auth=("me", admin), headers=foreign)).status_code == 401
        broken = {"authorization": "Basic !"}
        assert (await http.get("/v1/models", headers=broken)).status_code == 401
