"""Notes the times of a request while it runs."""

from __future__ import annotations

import time
from array import array

from deltaserve.bench.records import CANCELLED, Record
from deltaserve.bench.workload import Planned


class Recorder:
    """Notes the times of one request while it runs."""

    __slots__ = ("_frames", "_leave_after", "_record", "_start")

    def __init__(self, planned: Planned, start: float) -> None:
        """Begins when the request is sent; `start` is the monotonic time of the run's start."""
        self._start = start
        self._frames = array("d")
        self._leave_after = planned.cancel_after
        self._record = Record(planned.model, planned.at, sent=time.monotonic() - start)

    def tokens(self, count: int) -> bool:
        """Notes that so many tokens came now; returns whether the client leaves with that."""
        self._frames.append(time.monotonic() - self._start)
        self._record.output_tokens += count
        if self._leave_after is None or self._record.output_tokens < self._leave_after:
            return False
        self._record.status = CANCELLED
        return True

    def told(self, prompt_tokens: int, output_tokens: int, tier: str = "", load: float = 0.0) -> None:
        """Notes what the server tells at the end."""
        record = self._record
        record.prompt_tokens, record.output_tokens, record.tier, record.load = prompt_tokens, output_tokens, tier, load

    def end(self, failure: str | None = None) -> Record:
        """Ends the request now, with why it failed if it did; returns what is known."""
        self._record.ended = time.monotonic() - self._start
        self._record.frames = self._frames.tobytes()
        if failure is not None:
            self._record.status = failure
        return self._record
