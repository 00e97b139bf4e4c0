"""How long chunks are gathered before they are written, by how busy the router is.

Most of what a token costs is the write of its frame, and a frame takes as many tokens as there are. A router that has
time writes each token as it comes; one that is near its limit lets tokens gather for some milliseconds, which halves
the cost of a token long before latency would come from a full core. First and last chunks are never held back.
"""

from __future__ import annotations

import asyncio
import time

_PERIOD = 0.05  # seconds between two looks
_BUSY, _IDLE = 0.7, 0.5  # CPU seconds a second above which chunks gather longer, and below which shorter
_LEAST, _MOST = 0.004, 0.05  # seconds
_LONGER, _SHORTER = 1.5, 0.8


class Pacing:
    """The time for which chunks gather; the same for all streams.

    Attributes:
        seconds: see above; 0 while the router is not busy.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def look(self, busy: float) -> None:
        """Adapts to the CPU seconds a second that the process used since the last look."""
        if busy > _BUSY:
            self.seconds = min(_MOST, max(_LEAST, self.seconds * _LONGER))
        elif busy < _IDLE:
            shorter = self.seconds * _SHORTER
            self.seconds = shorter if shorter >= _LEAST else 0.0

    async def run(self) -> None:
        """Looks at the process from time to time, until cancelled."""
        wall, used = time.monotonic(), time.process_time()
        while True:
            await asyncio.sleep(_PERIOD)
            wall_now, used_now = time.monotonic(), time.process_time()
            if wall_now > wall:
                self.look((used_now - used) / (wall_now - wall))
            wall, used = wall_now, used_now
