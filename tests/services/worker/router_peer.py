"""A router's end of a Session, driven by tests."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from deltaserve.errors import DeltaServeError
from deltaserve.rpc.channels import internal_channel
from deltaserve.rpc.status import error_from_status
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.worker_pb2_grpc import WorkerServiceStub


@dataclass
class Stream:
    """What came for one request."""

    frames: list[pb.GenerateResponse] = field(default_factory=list)
    error: DeltaServeError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        return self.error is not None or (bool(self.frames) and self.frames[-1].HasField("summary"))

    def text(self, index: int = 0) -> str:
        return "".join(f.chunk.text for f in self.frames if f.HasField("chunk") and f.chunk.index == index)

    def tokens(self, index: int = 0) -> list[int]:
        chunks = [f.chunk for f in self.frames if f.HasField("chunk") and f.chunk.index == index]
        return [token for chunk in chunks for token in chunk.token_ids]

    def kinds(self) -> list[str]:
        """Frame kinds in order, repetitions left out."""
        names = [str(f.WhichOneof("frame")) for f in self.frames]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]

    def finished(self, index: int = 0) -> pb.Finished:
        return next(f.finished for f in self.frames if f.HasField("finished") and f.finished.index == index)

    @property
    def summary(self) -> pb.Summary:
        return self.frames[-1].summary


class RouterPeer:
    """A router's end of one Session."""

    def __init__(self, address: str) -> None:
        self.channel = internal_channel(address)
        self.stub = WorkerServiceStub(self.channel)
        self.welcome = wpb.Welcome()
        self.state = wpb.StateReport()
        self.streams: dict[str, Stream] = defaultdict(Stream)
        self.steps: list[wpb.StepOutputs] = []
        self.ended: grpc.aio.AioRpcError | None = None
        self._numbers = 0

    async def open(self) -> RouterPeer:
        self.call: Any = self.stub.Session()
        await self.call.write(wpb.SessionRequest(hello=wpb.Hello(router="test")))
        first = await self.call.read()
        self.welcome = first.welcome
        self._reading = asyncio.create_task(self._read())
        return self

    async def close(self) -> None:
        self.call.cancel()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self.channel.close()

    async def submit(self, request: pb.GenerateRequest, revision: str = "", **fields: Any) -> str:
        self._numbers += 1
        name = f"r{self._numbers}"
        fields = {"seed": 1} | fields
        await self.call.write(
            wpb.SessionRequest(submit=wpb.Submit(request_id=name, revision=revision, request=request, **fields))
        )
        return name

    async def generate(self, request: pb.GenerateRequest, revision: str = "", **fields: Any) -> Stream:
        return await self.wait(await self.submit(request, revision, **fields))

    async def fail(self, request: pb.GenerateRequest, revision: str = "", **fields: Any) -> DeltaServeError:
        stream = await self.generate(request, revision, **fields)
        assert stream.error is not None, stream.frames
        return stream.error

    async def abort(self, name: str) -> None:
        await self.call.write(wpb.SessionRequest(abort=wpb.Abort(request_id=name)))

    async def wait(self, name: str, until: Callable[[Stream], bool] = lambda stream: stream.done) -> Stream:
        stream = self.streams[name]
        async with asyncio.timeout(30):
            while not until(stream):
                stream.changed.clear()
                await stream.changed.wait()
        return stream

    async def wait_state(self, until: Callable[[wpb.StateReport], object], seconds: float = 10) -> wpb.StateReport:
        try:
            async with asyncio.timeout(seconds):
                while not until(self.state):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"state stays {self.state}") from None
        return self.state

    async def _read(self) -> None:
        try:
            while (message := await self.call.read()) is not grpc.aio.EOF:
                if message.HasField("state"):
                    self.state = message.state
                self.steps += [message.outputs] if message.HasField("outputs") else []
                for output in message.outputs.outputs:
                    stream = self.streams[output.request_id]
                    stream.frames += output.frames
                    if output.error_status:
                        stream.error = error_from_status(output.error_status)
                    stream.changed.set()
        except grpc.aio.AioRpcError as error:
            self.ended = error
