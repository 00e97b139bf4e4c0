"""The SDK for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from deltaserve.client import jobs
from deltaserve.client.folder import plan_upload
from deltaserve.client.generation import AsyncGeneration, Completion
from deltaserve.client.jobs import JobOptions, JobWatch
from deltaserve.client.requests import GenerateOptions, Prompt, generate_request, tokenize_request
from deltaserve.client.retry import persistent, unary
from deltaserve.client.tracing import ClientSpan, calling
from deltaserve.client.transfer import ProgressCallback, UploadProgress, send
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.keyed import with_key
from deltaserve.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"


class AsyncClient:
    """Talks to a router (or, for uploads and jobs alone, to a compressor).

    Every method raises the DeltaServeError that the server raised (deltaserve.errors). Methods that are safe to repeat
    are repeated with growing pauses while the server is unavailable, for at most `patience` seconds.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = 30.0,
        patience: float = 30.0,
        api_key: str | None = None,
    ) -> None:
        """Makes a client; it connects with its first call.

        Args:
            address: host:port.
            timeout: seconds that a short call may take; generations and uploads are not short.
            patience: seconds to keep trying while the server is unavailable; 0 tries once.
            api_key: sent with every call; None: nothing is.
        """
        self.address = address
        self._timeout = timeout
        self._patience = patience
        self._channel = with_key(edge_channel(address), api_key)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._models = models_pb2_grpc.ModelServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and every call that is still under way."""
        await self._channel.close()

    def generate(self, model: str, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncGeneration:
        """Prepares one generation: `async with client.generate(...) as stream: async for piece in stream.text(): ...`.

        Args:
            model: the base's name, `<model>`, `<model>@<revision>` or an alias.
            prompt: text, token ids, or messages of {"role", "content"}.
            options: sampling, stopping and response options, and `timeout`.

        Raises:
            InvalidArgumentError: an option does not fit its field.
        """
        request = generate_request(model, prompt, options)
        return AsyncGeneration(
            lambda metadata: self._inference.Generate(request, timeout=options.get("timeout"), metadata=metadata),
            ClientSpan(request),
        )

    async def complete(self, model: str, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """Generates and returns everything at the end; takes what `generate` takes."""
        async with self.generate(model, prompt, **options) as stream:
            return await stream.completion()

    async def tokenize(
        self, model: str, prompt: str | Sequence[Mapping[str, str]], *, add_special_tokens: bool | None = None
    ) -> inference_pb2.TokenizeResponse:
        """Tokenizes text or messages as `generate` would."""
        request = tokenize_request(model, prompt, add_special_tokens)
        return await persistent(lambda: self._inference.Tokenize(request, timeout=self._timeout), self._patience)

    async def models(self) -> list[inference_pb2.Model]:
        """Returns the base and every published fine-tune."""
        found: list[inference_pb2.Model] = []
        request = inference_pb2.ListModelsRequest(page_size=1000)
        while True:
            page = await persistent(lambda: self._inference.ListModels(request, timeout=self._timeout), self._patience)
            found.extend(page.models)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def upload(
        self, folder: Path | str, *, extra: Sequence[Path] = (), progress: ProgressCallback = lambda _: None
    ) -> str:
        """Uploads a checkpoint or packed delta; returns the source URI that `create_job` takes.

        The same files continue an upload that was interrupted, in this process or in a former one.

        Args:
            folder: with config.json and safetensors, or with a packed delta's manifest.json.
            extra: more files to send along, such as labelled text; a job names them by their file names.
            progress: called from time to time, from another thread while files are hashed.
        """

        def hashed(path: str, done: int, total: int) -> None:
            progress(UploadProgress("hashing", path, done, total))

        plan = await asyncio.to_thread(plan_upload, Path(folder), extra, hashed)
        return await send(self._models, plan, progress, self._patience)

    async def create_job(self, model: str, source_uri: str, **options: Unpack[JobOptions]) -> models_pb2.Job:
        """Queues a compression of `source_uri`, to be published as `model`."""
        request = jobs.job_request(model, source_uri, options)
        metadata = calling()
        call = persistent(
            lambda: self._models.CreateJob(request, timeout=self._timeout, metadata=metadata), self._patience
        )
        return (await call).job

    def watch_job(self, job_id: str) -> JobWatch:
        """Watches a job: `async with client.watch_job(id) as watch: async for job in watch: ...`."""
        return JobWatch(self._models, job_id, self._patience)

    async def wait_for_job(
        self, job_id: str, on_change: Callable[[models_pb2.Job], None] = lambda _: None
    ) -> models_pb2.Job:
        """Waits until a job has ended, however it ended; `on_change` gets every state on the way."""
        async with self.watch_job(job_id) as watch:
            async for job in watch:
                on_change(job)
        return job

    async def job(self, job_id: str) -> models_pb2.Job:
        """Returns one job."""
        request = models_pb2.GetJobRequest(job_id=job_id)
        return (await persistent(lambda: self._models.GetJob(request, timeout=self._timeout), self._patience)).job

    async def jobs(self, *, model: str = "", limit: int = 100) -> list[models_pb2.Job]:
        """Returns the newest jobs (of a model, when given), newest first, without their reports."""
        request = models_pb2.ListJobsRequest(model=model, page_size=limit)
        page = await persistent(lambda: self._models.ListJobs(request, timeout=self._timeout), self._patience)
        return list(page.jobs)

    async def cancel_job(self, job_id: str) -> models_pb2.Job:
        """Asks a job to stop."""
        request = models_pb2.CancelJobRequest(job_id=job_id)
        return (await persistent(lambda: self._models.CancelJob(request, timeout=self._timeout), self._patience)).job

    async def revision(self, model: str, revision: str = "") -> models_pb2.Revision:
        """Returns a published revision, the newest by default, with manifest and report."""
        request = models_pb2.GetRevisionRequest(name=_resource(model, revision))
        call = persistent(lambda: self._models.GetRevision(request, timeout=self._timeout), self._patience)
        return (await call).revision

    async def delete_revision(self, model: str, revision: str, *, force: bool = False) -> None:
        """Takes a revision out of the store; `force` does so even though an alias, a pin or a stream uses it."""
        request = models_pb2.DeleteRevisionRequest(name=_resource(model, revision), force=force)
        await unary(lambda: self._models.DeleteRevision(request, timeout=self._timeout))

    async def set_alias(
        self,
        alias: str,
        target: str | Mapping[str, float],
        *,
        shadow: tuple[str, float] | None = None,
        expected_version: int = 0,
    ) -> int:
        """Points an alias at `<model>` or `<model>@<revision>`, whole; returns the number of its new version.

        Args:
            alias: the alias.
            target: what to point it at, or several with their weights; empty removes the alias.
            shadow: what is to compute a share of the requests too, for comparison, and that share in (0, 1].
            expected_version: fail with PreconditionError unless this is the version that holds; 0: whichever does.
        """
        request = models_pb2.SetAliasRequest(alias=alias, expected_version=expected_version)
        if isinstance(target, str):
            request.target = target
        else:
            request.routes.extend(models_pb2.AliasRoute(target=t, weight=weight) for t, weight in target.items())
        if shadow is not None:
            request.shadow.target, request.shadow.share = shadow
        call = persistent(lambda: self._models.SetAlias(request, timeout=self._timeout), self._patience)
        return (await call).version

    async def rollback_alias(self, alias: str, version: int = 0) -> models_pb2.AliasVersion:
        """Takes an alias back to a version, by default the one before; going back again goes further back."""
        request = models_pb2.RollbackAliasRequest(alias=alias, version=version)
        # not repeated: a rollback whose answer was lost must not be done twice
        return (await unary(lambda: self._models.RollbackAlias(request, timeout=self._timeout))).version

    async def aliases(self, alias: str = "", *, history: bool = False) -> list[models_pb2.Alias]:
        """Returns all aliases, or one, with the version that holds, or with all versions, newest first."""
        request = models_pb2.ListAliasesRequest(alias=alias, history=history)
        call = persistent(lambda: self._models.ListAliases(request, timeout=self._timeout), self._patience)
        return list((await call).aliases)

    async def shadows(self) -> list[admin_pb2.ShadowPair]:
        """Returns how far shadows agree with what they shadow, as the router counted since it started."""
        request = admin_pb2.ListShadowsRequest()
        call = persistent(lambda: self._admin.ListShadows(request, timeout=self._timeout), self._patience)
        return list((await call).pairs)

    async def pin(self, model: str, pinned: bool = True) -> None:
        """Keeps a model resident even when idle, or no longer."""
        request = models_pb2.PinModelRequest(model=model, pinned=pinned)
        await persistent(lambda: self._models.PinModel(request, timeout=self._timeout), self._patience)

    async def workers(self) -> list[admin_pb2.Worker]:
        """Returns the workers as the router sees them."""
        request = admin_pb2.ListWorkersRequest()
        call = persistent(lambda: self._admin.ListWorkers(request, timeout=self._timeout), self._patience)
        return list((await call).workers)

    async def drain_worker(self, worker: str, *, undo: bool = False) -> None:
        """Takes a worker out of rotation, or back in."""
        request = admin_pb2.DrainWorkerRequest(worker=worker, undo=undo)
        await persistent(lambda: self._admin.DrainWorker(request, timeout=self._timeout), self._patience)

    async def placement(self, model: str = "") -> admin_pb2.GetPlacementResponse:
        """Returns what the router's last round of placement decided and why, of one model or of all."""
        request = admin_pb2.GetPlacementRequest(model=model)
        return await persistent(lambda: self._admin.GetPlacement(request, timeout=self._timeout), self._patience)

    async def usage(self) -> admin_pb2.GetUsageResponse:
        """Returns what API keys and models used of the router, and what is left of their quotas."""
        request = admin_pb2.GetUsageRequest()
        return await persistent(lambda: self._admin.GetUsage(request, timeout=self._timeout), self._patience)

    async def place(self, model: str, tier: inference_pb2.Tier.ValueType, worker: str = "") -> None:
        """Brings a revision into memory (TIER_DEVICE) or lets go of it (TIER_STORE), on one worker or on all."""
        request = admin_pb2.PlaceRevisionRequest(worker=worker, model=model, tier=tier)
        await persistent(lambda: self._admin.PlaceRevision(request, timeout=self._timeout), self._patience)


def _resource(model: str, revision: str) -> str:
    return f"models/{model}/revisions/{revision}" if revision else f"models/{model}"
