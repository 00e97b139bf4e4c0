"""What waits to be sent over one Session: everything of an engine step leaves in one message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from deltaserve.errors import DeltaServeError, SlowConsumerError
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2

_MESSAGE_BYTES = 8 << 20  # a message grows no further; whole-vocabulary logprobs can exceed gRPC's limit otherwise
_BACKLOG_FRAMES = 200_000  # a router this far behind has gone


class Outbox:
    """Frames of one session, merged until the connection takes them.

    Everything emitted between two turns of the event loop, and whatever gathers while a write is in flight, goes out
    together, one entry a request.
    """

    def __init__(self) -> None:
        self._outputs: list[worker_pb2.RequestOutput] = []
        self._open: dict[int, worker_pb2.RequestOutput] = {}  # of these, the one that takes more, by key
        self._welcome: worker_pb2.Welcome | None = None
        self._state: worker_pb2.StateReport | None = None
        self._arrivals = worker_pb2.Arrivals()
        self._frames = 0
        self._wake = asyncio.Event()
        self._end: DeltaServeError | bool = False

    def emit(self, key: int, request_id: str, frames: Sequence[pb.GenerateResponse]) -> None:
        """Queues frames of request `request_id`; `key` is different for every request of the session."""
        if not frames:
            return
        self._output(key, request_id).frames.extend(frames)
        if any(frame.chunk.logprobs for frame in frames):
            del self._open[key]  # large: entries must stay small enough to be spread over messages
        self._frames += len(frames)
        if self._frames > _BACKLOG_FRAMES:
            self.end(
                SlowConsumerError(f"the router left {self._frames} frames unread", subject="worker session backlog")
            )

    def fail(self, key: int, request_id: str, error: DeltaServeError) -> None:
        """Queues the end of a request in an error."""
        self._output(key, request_id).error_status = error.to_status().SerializeToString()

    def welcome(self, welcome: worker_pb2.Welcome) -> None:
        """Queues the answer to Hello, before everything else."""
        self._welcome = welcome
        self._wake.set()

    def report(self, state: worker_pb2.StateReport) -> None:
        """Queues a state report in place of an older one."""
        self._state = state
        self._wake.set()

    def arrivals(self, arrivals: worker_pb2.Arrivals) -> None:
        """Queues arrivals after those that wait."""
        self._arrivals.MergeFrom(arrivals)
        self._wake.set()

    def end(self, error: DeltaServeError | None = None) -> None:
        """Ends the session after what is queued, with an error if there is one."""
        self._end = self._end or error or True
        self._wake.set()

    async def messages(self) -> AsyncIterator[worker_pb2.SessionResponse]:
        """Yields what is to be written; raises the error that ended the session."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for message in self._take():
                yield message
            if isinstance(self._end, DeltaServeError):
                raise self._end
            if self._end and not self._outputs:
                return

    def _output(self, key: int, request_id: str) -> worker_pb2.RequestOutput:
        self._wake.set()
        if key not in self._open:
            self._open[key] = worker_pb2.RequestOutput(request_id=request_id)
            self._outputs.append(self._open[key])
        return self._open[key]

    def _take(self) -> list[worker_pb2.SessionResponse]:
        outputs, self._outputs, self._open, self._frames = self._outputs, [], {}, 0
        welcome, self._welcome = self._welcome, None
        messages = [] if welcome is None else [worker_pb2.SessionResponse(welcome=welcome)]
        steps = [worker_pb2.StepOutputs(outputs=portion) for portion in _portions(outputs)]
        messages += [worker_pb2.SessionResponse(outputs=step) for step in steps]
        if self._arrivals.revisions:
            messages.append(worker_pb2.SessionResponse(arrivals=self._arrivals))
            self._arrivals = worker_pb2.Arrivals()
        if self._state is not None:
            messages.append(worker_pb2.SessionResponse(state=self._state))
            self._state = None
        return messages


def _portions(outputs: list[worker_pb2.RequestOutput]) -> list[list[worker_pb2.RequestOutput]]:
    portions: list[list[worker_pb2.RequestOutput]] = []
    room = 0
    for output in outputs:
        size = output.ByteSize()
        if size > room:
            portions.append([])
            room = _MESSAGE_BYTES
        portions[-1].append(output)
        room -= size
    return portions
