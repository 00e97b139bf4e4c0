"""A protocol peer for the SDK and the CLI: it serves the public API from memory over a real socket."""

import asyncio
import hashlib
import json
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import pytest

from deltaserve import errors
from deltaserve.rpc.servers import serving
from deltaserve.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc

SERVICES = ["deltaserve.v1.InferenceService", "deltaserve.v1.ModelService", "deltaserve.v1.AdminService"]


class PeerInference(inference_pb2_grpc.InferenceServiceServicer):
    """Echoes the words of a prompt."""

    def __init__(self) -> None:
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.running = 0
        self.delay = 0.0  # seconds between words

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        if request.model == "nobody":
            raise errors.NotFoundError("model 'nobody' is not published", kind="model", name="nobody")
        frame = inference_pb2.GenerateResponse
        self.running += 1
        try:
            yield frame(accepted=inference_pb2.Accepted(request_id="r1", model=request.model, revision="3"))
            yield frame(progress=inference_pb2.Progress(stage=inference_pb2.STAGE_LOADING, bytes_done=1, bytes_total=2))
            words = (request.text or " ".join(m.content for m in request.chat.messages)).split(" ")
            for position, word in enumerate(words):
                for index in range(request.sampling.n or 1):
                    text = word if position == 0 else f" {word}"
                    yield frame(chunk=inference_pb2.Chunk(index=index, text=text, token_ids=[position]))
                await asyncio.sleep(self.delay)
                if request.model == "breaks":
                    raise errors.WorkerLostError("worker w1 was lost", tokens_emitted=1)
            for index in range(request.sampling.n or 1):
                yield frame(finished=inference_pb2.Finished(index=index, reason=inference_pb2.FINISH_REASON_STOP))
            usage = inference_pb2.Usage(prompt_tokens=len(words), completion_tokens=len(words))
            yield frame(summary=inference_pb2.Summary(usage=usage, worker="w1", seed=request.sampling.seed))
        finally:
            self.running -= 1

    async def Tokenize(self, request: Any, context: Any) -> inference_pb2.TokenizeResponse:
        pieces = request.text.split(" ")
        return inference_pb2.TokenizeResponse(token_ids=range(len(pieces)), pieces=pieces, context_length=512)

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:
        if request.page_token:
            tuned = inference_pb2.Model(
                model="french", revision="2", revisions=["1", "2"], delta_bytes=1000, checkpoint_bytes=12_500
            )
            tuned.aliases.append("fr")
            tuned.residency.add(worker="w1", tier=inference_pb2.TIER_HOST)
            return inference_pb2.ListModelsResponse(models=[tuned])
        base = inference_pb2.Model(model="tiny", base=True)
        return inference_pb2.ListModelsResponse(models=[base], next_page_token="2")


class PeerModels(models_pb2_grpc.ModelServiceServicer):
    """Keeps uploads in memory; jobs go through the states that a test set."""

    def __init__(self) -> None:
        self.declared: dict[str, models_pb2.StartUploadRequest] = {}
        self.stored: dict[tuple[str, str], bytearray] = {}
        self.calls: list[int] = []  # bytes that each UploadChunks call brought
        self.break_after: list[int] = []  # UploadChunks calls to break off, after so many bytes
        self.damage: list[str] = []  # files to damage at the next commit
        self.jobs: dict[str, models_pb2.Job] = {}
        self.states: list[models_pb2.Job] = []  # what WatchJob tells, after the first
        self.watch_breaks = 0  # WatchJob calls to break off after their first message
        self.settings: list[Any] = []
        self.report_json = ""  # of every revision

    async def StartUpload(self, request: Any, context: Any) -> models_pb2.StartUploadResponse:
        former = self.declared.setdefault(request.upload_id, request)
        if [f.sha256 for f in former.files] != [f.sha256 for f in request.files]:
            raise errors.AlreadyExistsError(f"upload {request.upload_id} holds other files")
        for file in request.files:
            self.stored.setdefault((request.upload_id, file.path), bytearray())
        return models_pb2.StartUploadResponse(files=self._progress(request.upload_id), chunk_bytes=1000)

    async def UploadChunks(self, request_iterator: Any, context: Any) -> models_pb2.UploadChunksResponse:
        limit = self.break_after.pop(0) if self.break_after else None
        self.calls.append(0)
        upload = ""
        async for chunk in request_iterator:
            upload = upload or chunk.upload_id
            stored = self.stored[upload, chunk.path]
            if google_crc32c.value(chunk.data) != chunk.crc32c:
                raise errors.DataLossError("crc32c differs")
            if chunk.offset != len(stored):
                raise errors.OffsetError("gap", expected_offset=len(stored))
            stored += chunk.data
            self.calls[-1] += len(chunk.data)
            if limit is not None and self.calls[-1] >= limit:
                raise errors.UnavailableError("restarting", retry_seconds=0.01)
        return models_pb2.UploadChunksResponse(files=self._progress(upload))

    async def CommitUpload(self, request: Any, context: Any) -> models_pb2.CommitUploadResponse:
        for file in self.declared[request.upload_id].files:
            stored = self.stored[request.upload_id, file.path]
            if file.path in self.damage or hashlib.sha256(stored).hexdigest() != file.sha256:
                self.damage.remove(file.path)
                stored.clear()
                raise errors.DataLossError(f"{file.path} has another sha256")
        return models_pb2.CommitUploadResponse(source_uri=f"upload:{request.upload_id}")

    async def CreateJob(self, request: Any, context: Any) -> models_pb2.CreateJobResponse:
        job = models_pb2.Job(job_id=request.job_id, spec=request.spec, state=models_pb2.JOB_STATE_QUEUED)
        return models_pb2.CreateJobResponse(job=self.jobs.setdefault(request.job_id, job))

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[models_pb2.WatchJobResponse]:
        if request.job_id not in self.jobs:
            raise errors.NotFoundError(f"no job {request.job_id!r}", kind="job", name=request.job_id)
        job = self.jobs[request.job_id]
        yield models_pb2.WatchJobResponse(job=job)
        if self.watch_breaks:
            self.watch_breaks -= 1
            raise errors.DrainingError("restarting", retry_seconds=0.01)
        for state in self.states:
            job.MergeFrom(state)
            yield models_pb2.WatchJobResponse(job=job)

    async def GetJob(self, request: Any, context: Any) -> models_pb2.GetJobResponse:
        return models_pb2.GetJobResponse(job=self.jobs[request.job_id])

    async def ListJobs(self, request: Any, context: Any) -> models_pb2.ListJobsResponse:
        return models_pb2.ListJobsResponse(jobs=self.jobs.values())

    async def CancelJob(self, request: Any, context: Any) -> models_pb2.CancelJobResponse:
        self.jobs[request.job_id].state = models_pb2.JOB_STATE_CANCELLED
        return models_pb2.CancelJobResponse(job=self.jobs[request.job_id])

    async def GetRevision(self, request: Any, context: Any) -> models_pb2.GetRevisionResponse:
        found = models_pb2.Revision(name=request.name, report_json=self.report_json)
        return models_pb2.GetRevisionResponse(revision=found)

    async def DeleteRevision(self, request: Any, context: Any) -> models_pb2.DeleteRevisionResponse:
        self.settings.append(request)
        return models_pb2.DeleteRevisionResponse()

    async def SetAlias(self, request: Any, context: Any) -> models_pb2.SetAliasResponse:
        self.settings.append(request)
        return models_pb2.SetAliasResponse(version=7)

    async def RollbackAlias(self, request: Any, context: Any) -> models_pb2.RollbackAliasResponse:
        self.settings.append(request)
        routes = [models_pb2.AliasRoute(target="french@1", weight=1)]
        return models_pb2.RollbackAliasResponse(
            version=models_pb2.AliasVersion(number=8, routes=routes, restores=request.version or 5)
        )

    async def ListAliases(self, request: Any, context: Any) -> models_pb2.ListAliasesResponse:
        routes = [models_pb2.AliasRoute(target=f"french@{n}", weight=w) for n, w in ((1, 3), (2, 1))]
        shadow = models_pb2.AliasShadow(target="french@3", share=0.2)
        versions = [models_pb2.AliasVersion(number=2, routes=routes, shadow=shadow)]
        if request.history:
            versions.append(models_pb2.AliasVersion(number=1, routes=routes[:1]))
        return models_pb2.ListAliasesResponse(aliases=[models_pb2.Alias(alias="fr", versions=versions)])

    async def PinModel(self, request: Any, context: Any) -> models_pb2.PinModelResponse:
        self.settings.append(request)
        return models_pb2.PinModelResponse()

    def _progress(self, upload: str) -> list[models_pb2.FileProgress]:
        files = self.declared[upload].files
        return [
            models_pb2.FileProgress(path=f.path, received=len(self.stored[upload, f.path]), size=f.size) for f in files
        ]


class PeerAdmin(admin_pb2_grpc.AdminServiceServicer):
    """One worker."""

    def __init__(self) -> None:
        self.orders: list[Any] = []

    async def ListWorkers(self, request: Any, context: Any) -> admin_pb2.ListWorkersResponse:
        worker = admin_pb2.Worker(worker="w1", address="127.0.0.1:1", state=admin_pb2.WORKER_STATE_SERVING, running=2)
        worker.residency.add(revision="french@2", worker="w1", tier=inference_pb2.TIER_HOST, bytes=1000)
        return admin_pb2.ListWorkersResponse(workers=[worker])

    async def DrainWorker(self, request: Any, context: Any) -> admin_pb2.DrainWorkerResponse:
        self.orders.append(request)
        return admin_pb2.DrainWorkerResponse()

    async def PlaceRevision(self, request: Any, context: Any) -> admin_pb2.PlaceRevisionResponse:
        self.orders.append(request)
        return admin_pb2.PlaceRevisionResponse()

    async def ListShadows(self, request: Any, context: Any) -> admin_pb2.ListShadowsResponse:
        pair = admin_pb2.ShadowPair(
            primary="french@1", shadow="french@2", sampled=9, compared=4, identical=3, tokens_agreed=99, diverged=1,
            agreement=0.99, mean_divergence=12.0, skipped=5,
        )  # fmt: skip
        return admin_pb2.ListShadowsResponse(pairs=[pair])

    async def GetUsage(self, request: Any, context: Any) -> admin_pb2.GetUsageResponse:
        metadata = dict(context.invocation_metadata())
        key = admin_pb2.GetUsageResponse.Usage(
            name=metadata.get("authorization", "none"), requests=1200, refused=3, tokens=45_000, running=2, queued=1,
            weight=2, tokens_left=-12, tokens_per_second=500,
        )  # fmt: skip
        model = admin_pb2.GetUsageResponse.Usage(name="french", requests=7)
        return admin_pb2.GetUsageResponse(queued=1, max_queued=1024, keys=[key], models=[model])

    async def GetPlacement(self, request: Any, context: Any) -> admin_pb2.GetPlacementResponse:
        answer = admin_pb2.GetPlacementResponse(digest="d1")
        if request.model == "nothing":
            return answer
        answer.decided_at.FromSeconds(1_700_000_000)
        answer.horizon.FromSeconds(15)
        placed = answer.revisions.add(revision="french@2", probability=0.42, copies=1, memory=["w1"], pinned=True)
        placed.next_request.FromSeconds(90)
        answer.revisions.add(revision="german@1", probability=0.06, copies=1, disk="w1")
        answer.orders.add(worker="w1", revision="french@2", tier=inference_pb2.TIER_DEVICE, reason="pinned")
        return answer


class Peer:
    """The servicers, and the server that can be stopped and started again on its port."""

    def __init__(self) -> None:
        self.inference, self.models, self.admin = PeerInference(), PeerModels(), PeerAdmin()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        ready = threading.Event()

        def register(server: grpc.aio.Server) -> None:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.inference, server)
            models_pb2_grpc.add_ModelServiceServicer_to_server(self.models, server)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(self.admin, server)

        async def serve() -> None:
            self._stop = asyncio.Event()
            async with serving(f"127.0.0.1:{self.port}", register, SERVICES, grace_seconds=0.1) as host:
                self.port = host.port
                await host.set_serving(True)
                ready.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()))
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        if self._thread is not None and self._stop is not None:
            self._stop._loop.call_soon_threadsafe(self._stop.set)  # type: ignore[attr-defined]
            self._thread.join()
            self._thread = None

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Waits until no generation runs."""
        end = time.monotonic() + seconds
        while self.inference.running:
            assert time.monotonic() < end, f"{self.inference.running} generations still run"
            time.sleep(0.01)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    peer.start()
    yield peer
    peer.stop()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that looks like a small fine-tune, with calibration text beside its weights."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 16}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    (folder / "training_args.bin").write_bytes(b"not sent")
    tensors = {"model.norm.weight": [16], "model.layers.0.self_attn.q_proj.weight": [64, 16]}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        size = 2
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(offset)))


@pytest.fixture
def make_safetensors() -> Callable[[Path, dict[str, list[int]]], None]:
    return write_safetensors
