"""Compression jobs: what is asked for, and a watch that outlives a restarted compressor."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypedDict

import grpc

from deltaserve.client.retry import Backoff
from deltaserve.errors import DeltaServeError, InternalError, InvalidArgumentError
from deltaserve.rpc.status import RemoteError, error_from_rpc, error_from_status
from deltaserve.v1 import models_pb2 as pb
from deltaserve.v1 import models_pb2_grpc as rpc

ENDED = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


class JobOptions(TypedDict, total=False):
    """Options of a compression, each optional and named as in models.proto, which says what they mean."""

    codec: str | None
    embedding_codec: str | None
    preset: str | None
    bits_per_param: float | None
    smallest: bool | None
    lossless: bool | None
    group_size: int | None
    calibration_samples: int | None
    calibration_tokens: int | None
    calibration_uri: str | None
    evaluation_uri: str | None
    max_kl: float | None
    min_agreement: float | None
    max_accuracy_drop: float | None
    max_bits_per_param: float | None
    job_id: str | None


_COMPRESSION = frozenset(field.name for field in pb.CompressionOptions.DESCRIPTOR.fields)
_POLICY = frozenset(field.name for field in pb.QualityPolicy.DESCRIPTOR.fields)


def job_request(model: str, source_uri: str, options: JobOptions) -> pb.CreateJobRequest:
    """Returns the request for a job; the job's id is chosen here, so that asking again cannot queue it twice."""
    unknown = set(options) - JobOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected job options {sorted(unknown)}")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        spec = pb.JobSpec(
            model=model,
            source_uri=source_uri,
            compression=pb.CompressionOptions(**{k: v for k, v in given.items() if k in _COMPRESSION}),
            calibration_uri=given.get("calibration_uri", ""),
            evaluation_uri=given.get("evaluation_uri", ""),
            policy=pb.QualityPolicy(**{k: v for k, v in given.items() if k in _POLICY}),
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"a compression option does not fit its field: {error}") from error
    return pb.CreateJobRequest(job_id=given.get("job_id", f"{model[:40]}-{uuid.uuid4().hex[:8]}"), spec=spec)


def error_of_job(job: pb.Job) -> DeltaServeError | None:
    """Returns why a job ended without publishing, or None."""
    if job.state == pb.JOB_STATE_CANCELLED:
        return RemoteError(grpc.StatusCode.CANCELLED, f"job {job.job_id} was cancelled")
    if job.state != pb.JOB_STATE_FAILED:
        return None
    if not job.error_status:
        return InternalError(f"job {job.job_id} failed and does not say why")
    return error_from_status(job.error_status)


class JobWatch:
    """Iterates over a job's changes until it has ended; `async with` makes sure that the watch itself ends."""

    def __init__(self, stub: rpc.ModelServiceAsyncStub, job_id: str, patience: float) -> None:
        self._open: Callable[[], grpc.aio.UnaryStreamCall] = (  # type: ignore[type-arg,unused-ignore]
            lambda: stub.WatchJob(pb.WatchJobRequest(job_id=job_id))
        )
        self._backoff = Backoff(patience)
        self._call: grpc.aio.UnaryStreamCall | None = None  # type: ignore[type-arg,unused-ignore]
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.Job:
        """Returns the job at its next change; connects again while the compressor is away.

        Raises:
            DeltaServeError: no such job, or the compressor stayed away.
        """
        while not self._ended:
            if self._call is None:
                self._call = self._open()
            try:
                response = await self._call.read()
            except grpc.aio.AioRpcError as failure:
                error = error_from_rpc(failure)
                if error.code not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
                    raise error from None
                await self._reopen(error)
                continue
            except asyncio.CancelledError:
                self._drop()
                raise
            if not isinstance(response, pb.WatchJobResponse):  # a draining server closes the stream early
                await self._reopen(InternalError("the watch ended before the job did"))
                continue
            self._backoff.reset()
            self._ended = response.job.state in ENDED
            return response.job
        raise StopAsyncIteration

    async def _reopen(self, error: DeltaServeError) -> None:
        self._drop()
        await self._backoff.wait(error)

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
