"""One generation as an async context manager that really cancels: leaving the block ends the request on the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc

from deltaserve.client.tracing import ClientSpan, Metadata
from deltaserve.errors import InternalError
from deltaserve.rpc.status import error_from_rpc
from deltaserve.v1 import inference_pb2 as pb


@dataclass(slots=True)
class Completion:
    """A finished generation.

    Attributes:
        texts: output of each choice.
        token_ids: tokens of each choice.
        finished: why each choice ended.
        summary: usage, timings and the seed.
    """

    texts: list[str]
    token_ids: list[list[int]]
    finished: list[pb.Finished]
    summary: pb.Summary

    @property
    def text(self) -> str:
        """Output of the first choice."""
        return self.texts[0]


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finished: pb.Finished = field(default_factory=pb.Finished)


class AsyncGeneration:
    """Frames of one request; `async with` starts it and, however the block is left, stops it.

    Attributes:
        accepted: who answers, from the first frame on.
        progress: the newest report of what the request waits for.
        summary: usage and timings, after the last frame.
    """

    def __init__(
        self,
        start: Callable[[Metadata], grpc.aio.UnaryStreamCall],  # type: ignore[type-arg,unused-ignore]
        span: ClientSpan,
    ) -> None:
        """Calls `start` with metadata to send along, and tells `span` how it went."""
        self._start = start
        self._span = span
        self._call: grpc.aio.UnaryStreamCall | None = None  # type: ignore[type-arg,unused-ignore]
        self._cancelled = False
        self.accepted: pb.Accepted | None = None
        self.progress: pb.Progress | None = None
        self.summary: pb.Summary | None = None

    async def __aenter__(self) -> Self:
        if self._call is not None:
            raise RuntimeError("this generation was already started; call generate() again")
        self._call = self._start(self._span.begin())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._span.end(self.summary is not None, error)

    def cancel(self) -> None:
        """Stops the request; iteration ends. No effect on a request that has ended."""
        if self._call is not None and not self._call.done():
            self._cancelled = True
            self._call.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.GenerateResponse:
        """Returns the next frame.

        Raises:
            DeltaServeError: the request failed; the class says how (deltaserve.errors).
        """
        if self._call is None:
            raise RuntimeError("not started; write `async with client.generate(...) as stream:`")
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            failure = error_from_rpc(error)
            self._span.failed(failure)
            raise failure from None
        except asyncio.CancelledError:
            if self._cancelled:
                raise StopAsyncIteration from None
            raise
        if not isinstance(frame, pb.GenerateResponse):  # grpc's end-of-stream marker
            if self.summary is None:
                raise InternalError("the stream ended without a Summary frame")
            raise StopAsyncIteration
        self._note(frame)
        return frame

    async def text(self, index: int = 0) -> AsyncIterator[str]:
        """Yields the pieces of text of one choice as they arrive."""
        async for frame in self:
            if frame.WhichOneof("frame") == "chunk" and frame.chunk.index == index and frame.chunk.text:
                yield frame.chunk.text

    async def completion(self) -> Completion:
        """Reads to the end and returns everything."""
        choices: dict[int, _Choice] = {}
        async for frame in self:
            kind = frame.WhichOneof("frame")
            if kind == "chunk":
                choice = choices.setdefault(frame.chunk.index, _Choice())
                choice.text.append(frame.chunk.text)
                choice.token_ids.extend(frame.chunk.token_ids)
            elif kind == "finished":
                choices.setdefault(frame.finished.index, _Choice()).finished = frame.finished
        if self.summary is None:
            raise asyncio.CancelledError
        ordered = [choices[index] for index in sorted(choices)]
        return Completion(
            texts=["".join(c.text) for c in ordered],
            token_ids=[c.token_ids for c in ordered],
            finished=[c.finished for c in ordered],
            summary=self.summary,
        )

    def _note(self, frame: pb.GenerateResponse) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "accepted":
            self.accepted = frame.accepted
            self._span.accepted(frame.accepted)
        elif kind == "progress":
            self.progress = frame.progress
        elif kind == "finished":
            self._span.finished(frame.finished)
        elif kind == "summary":
            self.summary = frame.summary
            self._span.summed_up(frame.summary)
