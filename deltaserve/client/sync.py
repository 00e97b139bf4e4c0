"""The SDK without asyncio: the async client on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from deltaserve.client.aio import DEFAULT_ADDRESS, AsyncClient
from deltaserve.client.generation import AsyncGeneration, Completion
from deltaserve.client.jobs import JobOptions
from deltaserve.client.requests import GenerateOptions, Prompt
from deltaserve.client.transfer import ProgressCallback
from deltaserve.v1 import admin_pb2, inference_pb2, models_pb2

T = TypeVar("T")


_SETTLE_SECONDS = 1.0


async def _settle() -> None:
    """Waits until nothing else runs on the loop, or for a second."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=_SETTLE_SECONDS)


class _LoopThread:
    """An event loop that runs in a daemon thread until it is stopped."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="deltaserve-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and returns its result; an interrupt of the caller cancels it."""
        if self.loop.is_closed():
            coroutine.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the loop and the thread."""
        if not self.loop.is_closed():
            self.run(_settle())  # gRPC's own tasks of a call that was cancelled end a moment after it
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()


class Generation:
    """Frames of one request; `with` starts it and, however the block is left, stops it on the worker too.

    `accepted`, `progress` and `summary` are as in AsyncGeneration.
    """

    def __init__(self, loop: _LoopThread, make: Callable[[], AsyncGeneration]) -> None:
        self._loop = loop
        self._inner = make()

    def __enter__(self) -> Self:
        self._loop.run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._inner.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[inference_pb2.GenerateResponse]:
        """Yields the frames as they arrive."""
        while (frame := self._loop.run(_next(self._inner))) is not None:
            yield frame

    def text(self, index: int = 0) -> Iterator[str]:
        """Yields the pieces of text of one choice as they arrive."""
        for frame in self:
            if frame.WhichOneof("frame") == "chunk" and frame.chunk.index == index and frame.chunk.text:
                yield frame.chunk.text

    def completion(self) -> Completion:
        """Reads to the end and returns everything."""
        return self._loop.run(self._inner.completion())

    @property
    def accepted(self) -> inference_pb2.Accepted | None:
        """Who answers, from the first frame on."""
        return self._inner.accepted

    @property
    def progress(self) -> inference_pb2.Progress | None:
        """The newest report of what the request waits for."""
        return self._inner.progress

    @property
    def summary(self) -> inference_pb2.Summary | None:
        """Usage and timings, after the last frame."""
        return self._inner.summary


async def _next(generation: AsyncGeneration) -> inference_pb2.GenerateResponse | None:
    # StopAsyncIteration cannot leave a coroutine, so the end is None
    return await anext(generation, None)


class Client:
    """AsyncClient for code without asyncio: the same methods, arguments and errors; several threads may share one."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = 30.0,
        patience: float = 30.0,
        api_key: str | None = None,
    ) -> None:
        """Makes a client; see AsyncClient."""
        self._loop = _LoopThread()

        async def make() -> AsyncClient:
            return AsyncClient(address, timeout=timeout, patience=patience, api_key=api_key)

        self._client = self._loop.run(make())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and every call that is still under way."""
        if not self._loop.loop.is_closed():
            self._loop.run(self._client.close())
            self._loop.stop()

    def generate(self, model: str, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """Prepares one generation: `with client.generate(...) as stream: for piece in stream.text(): ...`."""
        return Generation(self._loop, lambda: self._client.generate(model, prompt, **options))

    def complete(self, model: str, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """Generates and returns everything at the end."""
        return self._loop.run(self._client.complete(model, prompt, **options))

    def tokenize(
        self, model: str, prompt: str | Sequence[Mapping[str, str]], *, add_special_tokens: bool | None = None
    ) -> inference_pb2.TokenizeResponse:
        """Tokenizes text or messages as `generate` would."""
        return self._loop.run(self._client.tokenize(model, prompt, add_special_tokens=add_special_tokens))

    def models(self) -> list[inference_pb2.Model]:
        """Returns the base and every published fine-tune."""
        return self._loop.run(self._client.models())

    def upload(
        self, folder: Path | str, *, extra: Sequence[Path] = (), progress: ProgressCallback = lambda _: None
    ) -> str:
        """Uploads a checkpoint or packed delta; returns the source URI. `progress` is called from another thread."""
        return self._loop.run(self._client.upload(folder, extra=extra, progress=progress))

    def create_job(self, model: str, source_uri: str, **options: Unpack[JobOptions]) -> models_pb2.Job:
        """Queues a compression of `source_uri`, to be published as `model`."""
        return self._loop.run(self._client.create_job(model, source_uri, **options))

    def wait_for_job(self, job_id: str, on_change: Callable[[models_pb2.Job], None] = lambda _: None) -> models_pb2.Job:
        """Waits until a job has ended, however it ended; `on_change` is called from another thread."""
        return self._loop.run(self._client.wait_for_job(job_id, on_change))

    def job(self, job_id: str) -> models_pb2.Job:
        """Returns one job."""
        return self._loop.run(self._client.job(job_id))

    def jobs(self, *, model: str = "", limit: int = 100) -> list[models_pb2.Job]:
        """Returns the newest jobs, newest first, without their reports."""
        return self._loop.run(self._client.jobs(model=model, limit=limit))

    def cancel_job(self, job_id: str) -> models_pb2.Job:
        """Asks a job to stop."""
        return self._loop.run(self._client.cancel_job(job_id))

    def revision(self, model: str, revision: str = "") -> models_pb2.Revision:
        """Returns a published revision, the newest by default."""
        return self._loop.run(self._client.revision(model, revision))

    def delete_revision(self, model: str, revision: str, *, force: bool = False) -> None:
        """Takes a revision out of the store, though it is in use if `force` says so."""
        self._loop.run(self._client.delete_revision(model, revision, force=force))

    def set_alias(
        self,
        alias: str,
        target: str | Mapping[str, float],
        *,
        shadow: tuple[str, float] | None = None,
        expected_version: int = 0,
    ) -> int:
        """Points an alias at one or, with weights, several targets; see AsyncClient."""
        call = self._client.set_alias(alias, target, shadow=shadow, expected_version=expected_version)
        return self._loop.run(call)

    def rollback_alias(self, alias: str, version: int = 0) -> models_pb2.AliasVersion:
        """Takes an alias back to a version, by default the one before."""
        return self._loop.run(self._client.rollback_alias(alias, version))

    def aliases(self, alias: str = "", *, history: bool = False) -> list[models_pb2.Alias]:
        """Returns all aliases, or one, with the version that holds, or with all versions, newest first."""
        return self._loop.run(self._client.aliases(alias, history=history))

    def shadows(self) -> list[admin_pb2.ShadowPair]:
        """Returns how far shadows agree with what they shadow."""
        return self._loop.run(self._client.shadows())

    def pin(self, model: str, pinned: bool = True) -> None:
        """Keeps a model resident even when idle, or no longer."""
        self._loop.run(self._client.pin(model, pinned))

    def workers(self) -> list[admin_pb2.Worker]:
        """Returns the workers as the router sees them."""
        return self._loop.run(self._client.workers())

    def drain_worker(self, worker: str, *, undo: bool = False) -> None:
        """Takes a worker out of rotation, or back in."""
        self._loop.run(self._client.drain_worker(worker, undo=undo))

    def usage(self) -> admin_pb2.GetUsageResponse:
        """Returns what API keys and models used of the router, and what is left of their quotas."""
        return self._loop.run(self._client.usage())

    def placement(self, model: str = "") -> admin_pb2.GetPlacementResponse:
        """Returns what the router's last round of placement decided and why, of one model or of all."""
        return self._loop.run(self._client.placement(model))

    def place(self, model: str, tier: inference_pb2.Tier.ValueType, worker: str = "") -> None:
        """Brings a revision into memory (TIER_DEVICE) or lets go of it (TIER_STORE), on one worker or on all."""
        self._loop.run(self._client.place(model, tier, worker))
