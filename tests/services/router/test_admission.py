"""Admission through a real router over real sockets."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from deltaserve.client import AsyncClient
from deltaserve.errors import OverloadedError, PermissionDeniedError, QuotaError, UnauthenticatedError
from deltaserve.v1 import admin_pb2
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import models_pb2 as mpb
from deltaserve.v1 import worker_pb2 as wpb
from services.router.admission.keys import digest

from .conftest import (
    BASE_NAME,
    ScriptedWorker,
    call_failure,
    chunk,
    connected,
    ending,
    failure,
    progress,
    rest,
    routing,
    serve,
    until,
)


class Gatekept:
    """A script whose requests end when the test says so, in the order in which they came."""

    def __init__(self) -> None:
        self.turns: asyncio.Queue[None] = asyncio.Queue()
        self.served: list[str] = []

    async def __call__(self, worker: ScriptedWorker, submit: wpb.Submit) -> None:
        worker.emit(submit.request_id, progress(pb.STAGE_PREFILL, worker="w0"))
        self.served.append(submit.request.text)
        await self.turns.get()
        worker.emit(submit.request_id, chunk("x", 1), *ending(worker, submit, 1))


def keys_file(path: Path, **keys: str) -> dict[str, str]:
    """Writes a keys file of name=TOML lines; returns the keys' texts."""
    texts = {name: secrets.token_urlsafe() for name in keys}
    entries = [f'[[keys]]\nname = "{n}"\nsha256 = "{digest(texts[n])}"\n{lines}\n' for n, lines in keys.items()]
    path.write_text("\n".join(entries))
    return texts


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def asked(client: Any, text: str, key: str | None = None, **fields: Any) -> Any:
    request = pb.GenerateRequest(model=BASE_NAME, text=text, **fields)
    return client.inference.Generate(request, timeout=60, metadata=bearer(key) if key else ())


async def test_keys_are_asked_for_and_known(store: str, worker: ScriptedWorker, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    texts = keys_file(path, user="", boss="admin = true")
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], keys=path) as (router, client):
        await connected(router)
        for key in (None, "wrong"):
            assert isinstance(await failure(asked(client, "a", key)), UnauthenticatedError)
        assert isinstance(await call_failure(client.inference.ListModels(pb.ListModelsRequest())), UnauthenticatedError)
        assert (await rest(asked(client, "a", texts["user"])))[-1].HasField("summary")
        listed = client.inference.ListModels(pb.ListModelsRequest(), metadata=bearer(texts["user"]))
        assert (await listed).models[0].model == BASE_NAME
        for refused in (
            client.admin.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=bearer(texts["user"])),
            client.models.ListJobs(mpb.ListJobsRequest(), metadata=bearer(texts["user"])),
        ):
            assert isinstance(await call_failure(refused), PermissionDeniedError)
        async with AsyncClient(f"127.0.0.1:{client.host.port}", api_key=texts["boss"], patience=0) as boss:
            assert [w.worker for w in await boss.workers()] == ["w0"]
            assert (await boss.complete(BASE_NAME, "a b")).text == "ab"
            used = {entry.name: entry for entry in (await boss.usage()).keys}
        assert (used["user"].requests, used["user"].tokens, used["boss"].requests) == (1, 4, 1)
        assert not used["user"].HasField("tokens_per_second")


async def test_a_changed_file_holds_without_a_restart(store: str, worker: ScriptedWorker, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    before = keys_file(path, user="")["user"]
    settings: dict[str, Any] = {"keys": path, "keys_seconds": 0.02}
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], **settings) as (router, client):
        await connected(router)
        await rest(asked(client, "a", before))
        book = router.dispatcher.gate.quotas.book
        path.write_text("nonsense")
        await asyncio.sleep(0.2)
        await rest(asked(client, "a", before))  # a malformed file changes nothing
        after = keys_file(path, user="requests_per_second = 0.001")["user"]
        await until(lambda: router.dispatcher.gate.quotas.book.callers.keys() != book.callers.keys())
        assert isinstance(await failure(asked(client, "a", before)), UnauthenticatedError)
        await rest(asked(client, "a", after))
        assert isinstance(await failure(asked(client, "a", after)), QuotaError)


async def test_a_used_up_quota_is_told_with_the_time_to_come_again(
    store: str, worker: ScriptedWorker, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    texts = keys_file(path, few="requests_per_second = 0.01\nburst_seconds = 100", many="")
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], keys=path) as (router, client):
        await connected(router)
        await rest(asked(client, "a", texts["few"]))
        error = await failure(asked(client, "a", texts["few"]))
        assert isinstance(error, QuotaError)
        assert error.retry_seconds is not None
        assert 90 < error.retry_seconds <= 100
        assert len(await rest(asked(client, "a", texts["many"]))) > 0
    assert len(worker.submits) == 2


async def test_keys_share_a_full_worker_by_weight(store: str, worker: ScriptedWorker, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    texts = keys_file(path, light="", heavy="weight = 3")
    script = worker.script = Gatekept()
    worker.welcome.max_running = 1
    settings: dict[str, Any] = {"keys": path, "worker_backlog": 0}
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], **settings) as (router, client):
        await connected(router)
        stop = pb.StoppingParams(max_tokens=1)
        calls = [asyncio.create_task(rest(asked(client, "first", texts["light"], stopping=stop)))]
        await until(lambda: script.served)
        for name in ("light", "heavy"):
            calls += [asyncio.create_task(rest(asked(client, name, texts[name], stopping=stop))) for _ in range(24)]
        await until(lambda: router.dispatcher.waiting == 48)
        for turn in range(16):
            script.turns.put_nowait(None)
            await until(lambda turn=turn: len(script.served) == turn + 2)
        shares = Counter(script.served[1:])
        assert 11 <= shares["heavy"] <= 13
        for _ in range(40):
            script.turns.put_nowait(None)
        await asyncio.gather(*calls)
        accounts = router.dispatcher.gate.quotas.keys
        assert {name: (a.used.requests, a.used.running, a.used.queued) for name, a in accounts.items()} == {
            "light": (25, 0, 0), "heavy": (24, 0, 0)}  # fmt: skip


async def test_a_request_that_would_wait_too_long_is_refused_at_once(store: str, worker: ScriptedWorker) -> None:
    script = worker.script = Gatekept()
    worker.welcome.max_running = 1
    worker.state.service_time.FromMilliseconds(2000)
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], worker_backlog=0) as (router, client):
        await connected(router)
        calls = [client.generate(f"{n}", timeout=60) for n in range(3)]
        await until(lambda: router.dispatcher.waiting == 2)
        error = await failure(client.generate("late", max_queue_wait=Duration(seconds=2)))
        assert isinstance(error, OverloadedError)
        assert error.retry_seconds is not None
        assert error.retry_seconds >= 1
        assert isinstance(await failure(client.generate("late", timeout=3)), OverloadedError)
        patient = client.generate("patient", timeout=60, max_queue_wait=Duration(seconds=30))
        frames = [await patient.read(), await patient.read()]
        assert frames[1].progress.position == 2
        assert 4 < frames[1].progress.eta.ToTimedelta().total_seconds() < 10
        for _ in range(4):
            script.turns.put_nowait(None)
        for call in [*calls, patient]:
            await rest(call)
    assert "late" not in script.served


async def test_a_full_queue_makes_room_for_a_key_that_has_less(
    store: str, worker: ScriptedWorker, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    texts = keys_file(path, hog="", small="")
    worker.script = Gatekept()
    worker.welcome.max_running = 1
    settings: dict[str, Any] = {"keys": path, "worker_backlog": 0, "max_queue": 3}
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], **settings) as (router, client):
        await connected(router)
        calls = []
        for number in range(4):
            calls.append(asked(client, "a", texts["hog"], client_request_id=f"hog{number}"))
            await until(lambda number=number: router.dispatcher.waiting == number)
        assert isinstance(await failure(asked(client, "a", texts["hog"])), OverloadedError)
        small = asked(client, "a", texts["small"])
        assert isinstance(await failure(calls[-1]), OverloadedError)
        assert router.dispatcher.waiting == 3
        small.cancel()
        await until(lambda: router.dispatcher.waiting == 2)


@pytest.mark.parametrize("limit", ["max_queue_per_key", "max_queue_per_model"])
async def test_lines_are_bounded(store: str, worker: ScriptedWorker, limit: str) -> None:
    worker.script = Gatekept()
    worker.welcome.max_running = 1
    settings: dict[str, Any] = {limit: 1, "worker_backlog": 0}
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"], **settings) as (router, client):
        await connected(router)
        calls = [client.generate() for _ in range(2)]
        await until(lambda: router.dispatcher.waiting == 1)
        error = await failure(client.generate())
        assert isinstance(error, QuotaError if limit == "max_queue_per_key" else OverloadedError)
        assert len(calls) == 2
