"""Frames of one stream between worker and client, merged while they wait. No asyncio: time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from deltaserve.v1.inference_pb2 import GenerateResponse

_MERGED_BYTES = 64 << 10  # a chunk stops growing here, which keeps messages small


@dataclass(slots=True)
class _Waiting:
    """A frame of the queue's own: a part of a worker's message would keep all of that message in memory."""

    frame: GenerateResponse
    bytes: int
    text: list[str] = field(default_factory=list)  # of a chunk: joined once, since growing a proto string copies it

    def add(self, frame: GenerateResponse, size: int) -> None:
        self.text.append(frame.chunk.text)
        self.frame.chunk.token_ids.extend(frame.chunk.token_ids)
        self.frame.chunk.logprobs.extend(frame.chunk.logprobs)
        self.bytes += size


class FrameQueue:
    """First in, first out, with two liberties that the proto grants.

    A chunk joins the last waiting chunk of its choice, and a progress frame replaces a waiting one of its stage: a slow
    reader gets fewer, larger frames, never other contents.

    Attributes:
        flush_seconds: gather chunks for so long.
        bytes: of all waiting frames.
        largest: bytes of the largest frame that ever came.
    """

    def __init__(self, flush_seconds: float = 0.0) -> None:
        self.bytes = 0
        self.largest = 0
        self.flush_seconds = flush_seconds
        self._waiting: deque[_Waiting] = deque()
        self._taken = 0  # frames taken so far: the number of the frame at the head
        self._open: dict[int, int] = {}  # choice → number of its waiting chunk that may still grow
        self._started: set[int] = set()  # choices with output
        self._urgent = 0  # frames with a lower number go at once
        self._last_take = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, frame: GenerateResponse) -> None:
        """Appends a copy of a frame, or merges it into a waiting one."""
        size = frame.ByteSize()
        self.largest = max(self.largest, size)
        kind = frame.WhichOneof("frame")
        if kind == "chunk":
            self._put_chunk(frame, size)
            return
        if kind == "progress" and self._replaces_last(frame):
            self.bytes -= self._waiting.pop().bytes
        self._append(frame, size)
        self._urgent = self._taken + len(self._waiting)

    def due(self, now: float) -> float | None:
        """Returns in how many seconds the head may be taken: 0 for now, None when there is nothing."""
        if not self._waiting:
            return None
        if self._taken < self._urgent:
            return 0.0
        return max(0.0, self._last_take + self.flush_seconds - now)

    def take(self, now: float) -> GenerateResponse:
        """Removes and returns the head."""
        head = self._waiting.popleft()
        self.bytes -= head.bytes
        frame = head.frame
        if head.text:
            frame.chunk.text = "".join((frame.chunk.text, *head.text))
        if frame.HasField("chunk") and self._open.get(frame.chunk.index) == self._taken:
            del self._open[frame.chunk.index]
        self._taken += 1
        self._last_take = now
        return frame

    def _put_chunk(self, frame: GenerateResponse, size: int) -> None:
        choice = frame.chunk.index
        number = self._open.get(choice)
        if number is not None:
            last = self._waiting[number - self._taken]
            if last.bytes + size <= _MERGED_BYTES:
                last.add(frame, size)
                self.bytes += size
                return
        self._open[choice] = self._taken + len(self._waiting)
        self._append(frame, size)
        if choice not in self._started:
            self._started.add(choice)
            self._urgent = self._taken + len(self._waiting)

    def _append(self, frame: GenerateResponse, size: int) -> None:
        own = GenerateResponse()
        own.CopyFrom(frame)
        self._waiting.append(_Waiting(own, size))
        self.bytes += size

    def _replaces_last(self, frame: GenerateResponse) -> bool:
        if not self._waiting or not self._waiting[-1].frame.HasField("progress"):
            return False
        return self._waiting[-1].frame.progress.stage == frame.progress.stage
