"""The live page, served by a real router and opened in a real browser; workers and compressor are scripted."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import random
import re
import shutil
import subprocess
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from deltaserve.aliases import AliasVersion, Shadow
from deltaserve.aliases import Route as AliasRoute
from deltaserve.catalog import PIN, write_alias, write_setting
from deltaserve.delta.manifest import MANIFEST_FILE, dump_manifest
from deltaserve.names import RevisionName
from deltaserve.rpc.servers import serving
from deltaserve.store import Store, delta_key
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import models_pb2 as mpb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.models_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from services.router.http.app import Api
from services.router.http.live import Live
from services.router.http.models import Models
from services.router.http.serving import http_serving
from services.router.server import Router
from tests.services.router.conftest import (
    BASE_NAME,
    Client,
    ScriptedWorker,
    chunk,
    connected,
    ending,
    manifest,
    progress,
    rest,
    routing,
    serve,
    until,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--hide-scrollbars",
    "--run-all-compositor-stages-before-draw", "--virtual-time-budget=20000",
)  # fmt: skip
MODELS = ("legal-de", "conj_fr", "sql-writer", "triage", "g2p", "section", "poetry", "support-eu")

DRIVER = Path(__file__).with_name("live_driver.html")  # opens the page at a width, acts on it and tells what it saw


@pytest.fixture(scope="session")
def browser() -> str:
    """A browser, or a skip that is seen."""
    for path in filter(None, map(shutil.which, BROWSERS)):
        if subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0:
            return path
    reason = f"none of {', '.join(BROWSERS)} starts here; `make test` installs chromium where it may"
    warnings.warn(f"the live page is NOT tested in a browser: {reason}", stacklevel=1)
    pytest.skip(reason)


class Jobs(ModelServiceServicer):
    """A compressor with one job of each kind."""

    async def ListJobs(self, request: Any, context: Any) -> mpb.ListJobsResponse:
        running = mpb.Job(job_id="j-8c21", spec=mpb.JobSpec(model="summaries"), state=mpb.JOB_STATE_RUNNING)
        running.progress.stage = mpb.JOB_STAGE_COMPRESSING
        running.progress.layers_done, running.progress.layers_total = 11, 28
        running.progress.eta.FromSeconds(340)
        done = mpb.Job(job_id="j-8c20", spec=mpb.JobSpec(model="poetry"), state=mpb.JOB_STATE_SUCCEEDED)
        done.revision_name = "models/poetry/revisions/1"
        failed = mpb.Job(job_id="j-8c1f", spec=mpb.JobSpec(model="hot-takes"), state=mpb.JOB_STATE_FAILED)
        return mpb.ListJobsResponse(jobs=[running, done, failed])


@dataclass
class Scene:
    """A router with a page, its port and what stands behind it."""

    router: Router
    client: Client
    port: int
    store: str
    workers: list[ScriptedWorker]


async def publish(store: str, model: str, revision: str, delta_bytes: int) -> None:
    quality = {"kl": random.uniform(0.001, 0.05), "top1_agreement": random.uniform(0.96, 0.999)}
    found = manifest(model, revision, delta_bytes=delta_bytes)
    sizes = msgspec.structs.replace(found.sizes, checkpoint_bytes=15_200_000_000)
    found = msgspec.structs.replace(found, sizes=sizes, report={"version": 1, "quality": quality})
    assert await Store.open(store).put_new(
        delta_key(RevisionName(model, revision), MANIFEST_FILE), dump_manifest(found)
    )


def scripted_worker(name: str, number: int) -> ScriptedWorker:
    """A worker that holds some of the models, and echoes prompts a word at a time."""
    worker = ScriptedWorker(name)
    worker.welcome.max_running = 32
    state = worker.state
    state.delta_bytes_budget, state.disk_bytes_budget = 8_000_000_000, 60_000_000_000
    for place, model in enumerate(MODELS[number : number + 4]):
        tier = pb.TIER_DECODED if place == 3 else pb.TIER_DEVICE
        state.residency.add(
            worker=name, revision=f"{model}@1", tier=tier, bytes=int(1.1e9 + 2e8 * place), in_use=place % 2
        )
    for model in MODELS[number + 4 :]:
        state.residency.add(worker=name, revision=f"{model}@1", tier=pb.TIER_DISK, bytes=1_300_000_000)
    state.delta_bytes_used = sum(r.bytes for r in state.residency if r.tier >= pb.TIER_DEVICE)
    state.disk_bytes_used = 9_300_000_000
    state.kv_blocks_total, state.kv_blocks_free, state.running = 4096, 2900 - 400 * number, 3
    state.step_time.FromMicroseconds(13_400 + 900 * number)
    if number == 1:
        state.arriving.add(revision="support-eu@1", bytes_total=100, bytes_done=62, to_memory=True)

    async def echo(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, progress(pb.STAGE_PREFILL))
        model = submit.revision.partition("@")[0] or "base"
        words = f"{model} says: {submit.request.text}".split()
        for position, word in enumerate(words):
            await asyncio.sleep(0.01)
            worker.emit(submit.request_id, chunk(f"{word} ", position))
        worker.emit(submit.request_id, *ending(worker, submit, len(words)))

    worker.script = echo
    return worker


@pytest.fixture
async def scene(store: str) -> AsyncIterator[Scene]:
    for place, model in enumerate(MODELS):
        await publish(store, model, "1", int(1.05e9 + 9e7 * place))
    await publish(store, "conj_fr", "2", 1_400_000_000)
    canary = (AliasRoute("conj_fr@1", 9), AliasRoute("conj_fr@2", 1))
    await write_alias(Store.open(store), "french", AliasVersion(1, canary, Shadow("conj_fr@2", 0.2)))
    await write_setting(Store.open(store), PIN, "legal-de", {"pinned": True})
    workers = [scripted_worker(f"gpu-{n}", n) for n in range(3)]
    name = [mpb.DESCRIPTOR.services_by_name["ModelService"].full_name]
    async with contextlib.AsyncExitStack() as stack:
        host = await stack.enter_async_context(
            serving("127.0.0.1:0", lambda s: add_ModelServiceServicer_to_server(Jobs(), s), name, grace_seconds=0)
        )
        ports = [await stack.enter_async_context(serve(worker)) for worker in workers]
        router, client = await stack.enter_async_context(
            routing(store, [f"127.0.0.1:{port}" for port in ports], compressor=f"127.0.0.1:{host.port}")
        )
        await connected(router, 3)
        yield await stack.enter_async_context(paged(router, client, store, workers))


@contextlib.asynccontextmanager
async def paged(router: Router, client: Client, store: str, workers: list[ScriptedWorker]) -> AsyncIterator[Scene]:
    """Serves the API and the page as the router does, with the driver beside them."""

    async def driver(request: Request) -> Response:
        query = request.query_params
        text = DRIVER.read_text().replace("%WIDTH%", query["width"]).replace("%HEIGHT%", query["height"])
        text = text.replace("%PROMPT%", json.dumps(query["prompt"]).replace("</", "<\\/"))
        text = text.replace("%ASKED%", json.dumps(query["asked"]))
        return HTMLResponse(text)

    live = Live(router.catalog, router.dispatcher, router.generations, router.rates, router.models)
    models = Models(router.catalog, router.fleet, router.targets, 0)
    routes = [Route("/driver", driver), *live.routes()]
    api = Api(router.generations, models, router.inference.tokenize, lambda: True, routes)
    sampling = asyncio.create_task(live.run())
    async with http_serving("127.0.0.1:0", api.app(), 1.0) as port:
        yield Scene(router, client, port, store, workers)
    sampling.cancel()


async def open_page(
    browser: str, scene: Scene, folder: Path, width: int, height: int, *, asked: tuple[str, ...], prompt: str,
    flags: tuple[str, ...] = (),
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Opens and drives the page; returns what it was like and what the console said; page.png is in `folder`."""
    query = httpx.QueryParams(width=width, height=height, asked=json.dumps(asked), prompt=prompt)
    command = [
        browser, *FLAGS, *flags, f"--window-size={max(width, 500)},{height}", f"--user-data-dir={folder / 'profile'}",
        f"--screenshot={folder / 'page.png'}", "--dump-dom", f"http://127.0.0.1:{scene.port}/driver?{query}",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, said = await asyncio.wait_for(process.communicate(), 120)
    found = re.search(r'<pre id="found"[^>]*>(.+?)</pre>', out.decode(), re.DOTALL)
    assert found, said.decode()[-3000:]
    console = "\n".join(line for line in said.decode().splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found[1])), console


async def traffic(scene: Scene, seconds: float) -> None:
    """Asks for models, some more often than others."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        model = random.choices([*MODELS[:5], "french"], [9, 5, 3, 2, 1, 6])[0]
        text = " ".join(random.choices(["alpha", "beta", "gamma"], k=random.randint(4, 40)))
        asyncio.create_task(rest(scene.client.generate(text, model=model, timeout=60)))  # noqa: RUF006 - ends by itself
        await asyncio.sleep(random.expovariate(12))


@pytest.mark.parametrize(
    ("width", "height", "flags"),
    [(1280, 2000, ()), (1280, 2000, ("--blink-settings=preferredColorScheme=0",)), (390, 3600, ())],
    ids=["desktop", "dark", "phone"],
)
async def test_the_page_draws_the_system_and_streams_side_by_side(
    browser: str, scene: Scene, tmp_path: Path, width: int, height: int, flags: tuple[str, ...]
) -> None:
    await traffic(scene, 8)
    busy = asyncio.create_task(traffic(scene, 30))
    asked = (BASE_NAME, "conj_fr", "legal-de")
    found, console = await open_page(
        browser, scene, tmp_path, width, height, asked=asked, prompt="the quick brown fox <b>jumps</b>", flags=flags
    )
    busy.cancel()
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert found["content"] <= found["width"] <= width
    assert (found["foreign"], console) == (0, "")
    answers = {name.partition("@")[0]: text for name, text in found["panes"]}
    assert answers == {
        BASE_NAME: "base says: the quick brown fox <b>jumps</b> ",
        "conj_fr": "conj_fr says: the quick brown fox <b>jumps</b> ",
        "legal-de": "legal-de says: the quick brown fox <b>jumps</b> ",
    }
    assert (found["workers"], found["rows"]) == (3, len(MODELS) + 1)
    assert found["blocks"] == sum(len(w.state.residency) + len(w.state.arriving) for w in scene.workers) + 2
    assert found["lines"] > 3
    assert sorted(found["jobs"]) == [39, 100, 100]
    for said in ("gpu-2", "poetry", "pinned", "conj_fr@2 10 %", "layer 11 of 28", "shadowed by conj_fr@2", "agree"):
        assert said in found["text"], said


async def test_hostile_names_neither_run_nor_widen_the_page(browser: str, scene: Scene, tmp_path: Path) -> None:
    evil = "<img src=x onerror='parent.ran=true'>" + "w" * 300
    scene.workers[0].state.residency.add(worker=evil, revision=f"{evil}@1", tier=pb.TIER_DEVICE, bytes=1 << 30)
    scene.workers[0].welcome.worker = evil
    scene.workers[0].report()
    await until(lambda: any(r.worker == evil for k in scene.router.fleet.links() for r in k.report.residency))
    found, console = await open_page(
        browser, scene, tmp_path, 390, 3000, asked=(BASE_NAME,), prompt="<script>parent.ran = true</script>"
    )
    assert found["content"] <= found["width"]
    assert (found["ran"], found["foreign"], console) == (False, 0, "")


async def test_state_and_files_by_plain_http(scene: Scene) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{scene.port}") as http:
        for path, kind in (("/", "text/html"), ("/live/live.css", "text/css"), ("/live/live.js", "text/javascript")):
            got = await http.get(path)
            assert (got.status_code, got.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
            assert "default-src 'none'" in got.headers["content-security-policy"]
        for missing in ("/live/x", "/live/..%2flive.py", "/live/report/nobody@1"):
            assert (await http.get(missing)).status_code == 404
        page = await http.get("/live/report/conj_fr@2")
        assert "conj_fr@2 · quality report" in page.text
        state = (await http.get("/live/state")).json()
    assert {m["name"] for m in state["models"]} == {BASE_NAME, *MODELS}
    (french,) = state["aliases"]
    assert french["routes"] == [{"target": "conj_fr@1", "share": 0.9}, {"target": "conj_fr@2", "share": 0.1}]
    assert [job["state"] for job in state["jobs"]] == ["running", "succeeded", "failed"]
    (arriving,) = (worker["arriving"] for worker in state["workers"] if worker["name"] == "gpu-1")
    assert arriving == [{"revision": "support-eu@1", "share": 0.62, "to_memory": True}]
