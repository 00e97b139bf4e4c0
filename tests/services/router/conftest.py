"""A scripted worker that speaks the real Session protocol over a real socket, a store with models, and a router."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from deltaserve.delta.manifest import (
    DELTA_FILE,
    FORMAT,
    MANIFEST_FILE,
    VERSION,
    BaseRef,
    FileEntry,
    Manifest,
    Sizes,
    dump_manifest,
)
from deltaserve.errors import DeltaServeError
from deltaserve.names import RevisionName
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.servers import Host, serving
from deltaserve.rpc.status import error_from_rpc
from deltaserve.store import Store, delta_key
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.admin_pb2_grpc import AdminServiceStub
from deltaserve.v1.inference_pb2_grpc import InferenceServiceStub
from deltaserve.v1.models_pb2_grpc import ModelServiceStub
from deltaserve.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from services.router.server import Router
from services.router.settings import RouterSettings

BASE = "ab" * 32  # fingerprint
BASE_NAME = "tiny"


class ScriptedWorker(WorkerServiceServicer):
    """A worker whose answers a test decides: `script(worker, submit)` runs once for each Submit."""

    def __init__(self, name: str = "w0", base: str = BASE) -> None:
        self.welcome = wpb.Welcome(worker=name, base_fingerprint=base, base_model=BASE_NAME, max_running=4)
        self.script: Callable[[ScriptedWorker, wpb.Submit], Coroutine[Any, Any, None]] = answer
        self.state = wpb.StateReport(delta_bytes_budget=1 << 30)
        self.submits: list[wpb.Submit] = []
        self.aborts: list[str] = []
        self.pauses: list[tuple[str, bool]] = []
        self.places: list[wpb.Place] = []
        self.worths: list[wpb.Worths] = []
        self.hellos: list[str] = []
        self.tokenized: list[wpb.TokenizePromptRequest] = []
        self._outbox: asyncio.Queue[wpb.SessionResponse] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def emit(self, request_id: str, *frames: pb.GenerateResponse, error: DeltaServeError | None = None) -> None:
        output = wpb.RequestOutput(request_id=request_id, frames=frames)
        if error is not None:
            output.error_status = error.to_status().SerializeToString()
        self._outbox.put_nowait(wpb.SessionResponse(outputs=wpb.StepOutputs(outputs=[output])))

    def report(self) -> None:
        self._outbox.put_nowait(wpb.SessionResponse(state=self.state))

    async def Session(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        self._outbox = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests))
        ticker = asyncio.create_task(self._tick())
        try:
            while True:
                await context.write(await self._outbox.get())
        finally:
            for task in (reader, ticker, *self._tasks.values()):
                task.cancel()
            self._tasks.clear()

    async def TokenizePrompt(self, request: wpb.TokenizePromptRequest, context: Any) -> wpb.TokenizePromptResponse:
        self.tokenized.append(request)
        answer = pb.TokenizeResponse(token_ids=[len(w) for w in request.request.text.split()], context_length=99)
        return wpb.TokenizePromptResponse(response=answer)

    async def _read(self, requests: Any) -> None:
        async for message in requests:
            kind = message.WhichOneof("message")
            if kind == "hello":
                self.hellos.append(message.hello.router)
                self._outbox.put_nowait(wpb.SessionResponse(welcome=self.welcome))
            elif kind == "submit":
                self.submits.append(message.submit)
                task = asyncio.create_task(self.script(self, message.submit))
                self._tasks[message.submit.request_id] = task
            elif kind == "abort":
                self.aborts.append(message.abort.request_id)
                self._tasks.pop(message.abort.request_id).cancel()
            elif kind == "pause":
                self.pauses.append((message.pause.request_id, message.pause.paused))
            elif kind == "worths":
                self.worths.append(message.worths)
            else:
                self.places.append(message.place)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            self.report()


def chunk(text: str, *tokens: int, index: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(chunk=pb.Chunk(index=index, text=text, token_ids=tokens))


def progress(stage: pb.Stage.ValueType, **fields: Any) -> pb.GenerateResponse:
    return pb.GenerateResponse(progress=pb.Progress(stage=stage, **fields))


def ending(worker: ScriptedWorker, submit: wpb.Submit, tokens: int) -> tuple[pb.GenerateResponse, pb.GenerateResponse]:
    summary = pb.Summary(usage=pb.Usage(prompt_tokens=3, completion_tokens=tokens), seed=submit.seed)
    summary.worker = worker.welcome.worker
    return (
        pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP)),
        pb.GenerateResponse(summary=summary),
    )


async def answer(worker: ScriptedWorker, submit: wpb.Submit) -> None:
    """Streams the prompt back, word by word."""
    words = submit.request.text.split()
    worker.emit(submit.request_id, progress(pb.STAGE_PREFILL))
    for number, word in enumerate(words):
        worker.emit(submit.request_id, chunk(word, number))
        await asyncio.sleep(0.001)
    worker.emit(submit.request_id, *ending(worker, submit, len(words)))


@contextlib.asynccontextmanager
async def serve(worker: ScriptedWorker, port: int = 0) -> AsyncIterator[int]:
    """Runs a worker; yields its port. On exit its sessions break at once."""
    names = [wpb.DESCRIPTOR.services_by_name["WorkerService"].full_name]
    register = lambda server: add_WorkerServiceServicer_to_server(worker, server)  # noqa: E731
    async with serving(f"127.0.0.1:{port}", register, names, grace_seconds=0) as host:
        yield host.port


class Client:
    """All stubs of a router over one real channel."""

    def __init__(self, channel: grpc.aio.Channel, host: Host) -> None:
        self.channel = channel
        self.host = host
        self.inference = InferenceServiceStub(channel)
        self.admin = AdminServiceStub(channel)
        self.models = ModelServiceStub(channel)

    def generate(
        self, text: str = "a b c", model: str = BASE_NAME, *, timeout: float | None = 20, **fields: Any
    ) -> Any:
        return self.inference.Generate(pb.GenerateRequest(model=model, text=text, **fields), timeout=timeout)


@contextlib.asynccontextmanager
async def routing(store: str, workers: Sequence[str], **settings: Any) -> AsyncIterator[tuple[Router, Client]]:
    """Runs a router on a free port; yields it with a client of it. Rounds of placement, whose orders scripted workers
    do not carry out, are held only where a test sets `placement_seconds`."""
    defaults = {"listen": "127.0.0.1:0", "catalog_seconds": 0.2, "notice_seconds": 0.0, "placement_seconds": 0.0}
    values: dict[str, Any] = defaults | settings
    router = Router(RouterSettings(store=store, workers=tuple(workers), **values))
    async with router.running() as host, edge_channel(f"127.0.0.1:{host.port}") as channel:
        yield router, Client(channel, host)


async def rest(call: Any) -> list[pb.GenerateResponse]:
    """Reads a stream to its end."""
    frames = []
    while (frame := await call.read()) is not grpc.aio.EOF:
        frames.append(frame)
    return frames


async def call_failure(call: Awaitable[object]) -> DeltaServeError:
    """Awaits a unary call's error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def failure(call: Any) -> DeltaServeError:
    """Reads a stream to its error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(call)
    return error_from_rpc(caught.value)


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def connected(router: Router, workers: int = 1) -> None:
    """Waits until so many workers have a session and have reported."""
    await until(lambda: sum(k.connected and k.report.delta_bytes_budget > 0 for k in router.fleet.links()) == workers)


def manifest(model: str, revision: str, base: str = BASE, delta_bytes: int = 1000) -> Manifest:
    return Manifest(
        format=FORMAT,
        version=VERSION,
        model=model,
        revision=revision,
        created="2026-01-02T03:04:05Z",
        base=BaseRef(fingerprint=base, architecture="LlamaForCausalLM"),
        config={},
        tensors=[],
        files=[FileEntry(path=DELTA_FILE, size=delta_bytes, sha256="0" * 64)],
        sizes=Sizes(parameters=10, checkpoint_bytes=20_000, delta_bytes=delta_bytes, by_class={}),
    )


async def publish(uri: str, model: str, revision: str = "1", **fields: Any) -> str:
    """Publishes a revision without payload, which routers never read; returns its name."""
    name = RevisionName(model, revision)
    assert await Store.open(uri).put_new(
        delta_key(name, MANIFEST_FILE), dump_manifest(manifest(model, revision, **fields))
    )
    return str(name)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def worker() -> ScriptedWorker:
    return ScriptedWorker()
