"""Sending an upload so that it survives interruptions: of the connection, of the compressor, of the client itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import google_crc32c
import grpc

from deltaserve.client.folder import LocalUpload
from deltaserve.client.retry import Backoff, persistent
from deltaserve.errors import DataLossError, DeltaServeError, FormatError, UnavailableError
from deltaserve.rpc.ending import Ending
from deltaserve.rpc.status import error_from_rpc
from deltaserve.v1 import models_pb2 as pb
from deltaserve.v1 import models_pb2_grpc as rpc

_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 2 << 20
# one call sends at most this much, so that what was acknowledged is known now and then and no call is endless
_CALL_BYTES = 64 << 20
_CALL_SECONDS = 900.0
_COMMIT_SECONDS = 3600.0  # every byte is read and hashed again
# StartUpload tells where to go on after any of these, and tells the reason if there is no going on
_RESUMABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.DATA_LOSS,
}


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far an upload is; `done` and `total` are bytes over all files."""

    stage: Literal["hashing", "sending", "verifying"]
    path: str  # file at work; empty while verifying
    done: int
    total: int


ProgressCallback = Callable[[UploadProgress], None]


async def send(stub: rpc.ModelServiceAsyncStub, plan: LocalUpload, progress: ProgressCallback, patience: float) -> str:
    """Sends what is not there yet and commits; returns the source URI that CreateJob takes.

    Args:
        stub: the compressor, or a router before it.
        plan: what to send.
        progress: called as bytes go out.
        patience: seconds to keep trying while nothing gets through.

    Raises:
        DeltaServeError: refused, or no progress for `patience` seconds.
    """
    sender = _Sender(stub, plan, progress, patience)
    await sender.send_all()
    try:
        return await sender.commit()
    except DataLossError:
        # a file arrived damaged and was dropped: it goes once more, after that the file itself is to blame
        await sender.send_all()
        return await sender.commit()


class _Sender:
    def __init__(
        self, stub: rpc.ModelServiceAsyncStub, plan: LocalUpload, progress: ProgressCallback, patience: float
    ) -> None:
        self._stub = stub
        self._plan = plan
        self._progress = progress
        self._patience = patience
        self._chunk_bytes = _CHUNK_BYTES

    async def send_all(self) -> None:
        """Sends until the server says that every file is whole."""
        backoff = Backoff(self._patience)
        received = await self._start()
        while not self._complete(received):
            before = sum(received.values())
            try:
                received = await self._send_batch(received)
            except DeltaServeError as error:
                if error.code not in _RESUMABLE:
                    raise
                await backoff.wait(error)
                received = await self._start()
            if sum(received.values()) > before:
                backoff.reset()

    async def commit(self) -> str:
        """Has the server verify everything; returns the source URI."""
        total = self._plan.total_bytes
        self._progress(UploadProgress("verifying", "", total, total))
        request = pb.CommitUploadRequest(upload_id=self._plan.request.upload_id)
        call = persistent(lambda: self._stub.CommitUpload(request, timeout=_COMMIT_SECONDS), self._patience)
        return (await call).source_uri

    async def _start(self) -> dict[str, int]:
        """Opens the upload or finds it again; returns the bytes that are safe of each file."""
        started = await persistent(lambda: self._stub.StartUpload(self._plan.request, timeout=60), self._patience)
        self._chunk_bytes = min(started.chunk_bytes or _CHUNK_BYTES, _MAX_CHUNK_BYTES)
        return {file.path: file.received for file in started.files}

    async def _send_batch(self, received: dict[str, int]) -> dict[str, int]:
        """Sends what comes next in one call; returns the bytes that are safe of each file then."""
        call = self._stub.UploadChunks(timeout=_CALL_SECONDS)
        ending = Ending(call)
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended: its status says why
                async for chunk in self._chunks(received):
                    await call.write(chunk)
                await call.done_writing()
            after = {file.path: file.received for file in (await call).files}
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(await ending.error(error)) from None
        finally:
            call.cancel()
        if sum(after.values()) <= sum(received.values()):
            raise UnavailableError(f"the server stored nothing of a batch that began at {received}")
        return after

    async def _chunks(self, received: dict[str, int]) -> AsyncIterator[pb.UploadChunksRequest]:
        budget, done = _CALL_BYTES, sum(received.values())
        for file in self._plan.request.files:
            offset = received.get(file.path, 0)
            if offset >= file.size or budget <= 0:
                continue
            handle = await asyncio.to_thread(Path.open, self._plan.paths[file.path], "rb")
            with handle:
                while offset < file.size and budget > 0:
                    data, crc = await asyncio.to_thread(_read, handle, offset, self._chunk_bytes)
                    if not data:
                        raise FormatError(f"{file.path!r} became shorter than {file.size} bytes while it was sent")
                    upload_id = self._plan.request.upload_id
                    yield pb.UploadChunksRequest(
                        upload_id=upload_id, path=file.path, offset=offset, data=data, crc32c=crc
                    )
                    offset += len(data)
                    done += len(data)
                    budget -= len(data)
                    self._progress(UploadProgress("sending", file.path, done, self._plan.total_bytes))

    def _complete(self, received: dict[str, int]) -> bool:
        return all(received.get(file.path, 0) >= file.size for file in self._plan.request.files)


def _read(handle: BinaryIO, offset: int, size: int) -> tuple[bytes, int]:
    handle.seek(offset)
    data = handle.read(size)
    return data, google_crc32c.value(data)
