"""One router's stream, with the requests that came over it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from services.worker.front.outbox import Outbox
from services.worker.front.request import Request


@dataclass(slots=True, eq=False)
class RouterSession:
    """One router's stream.

    Attributes:
        router: its name.
        outbox: what waits to be sent to it.
        tasks: what serves its requests, by their ids.
        requests: these requests.
    """

    router: str
    outbox: Outbox = field(default_factory=Outbox)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)

    def add(self, request: Request, task: asyncio.Task[None]) -> None:
        """Takes a request that is served by `task`; it leaves when the task ends."""
        self.requests[request.id], self.tasks[request.id] = request, task
        task.add_done_callback(lambda _: self._forget(request.id))

    def cancel(self, request_id: str) -> None:
        """Stops a request without an answer; unknown ones are ignored."""
        task = self.tasks.get(request_id)
        if task is not None:
            task.cancel()

    def cancel_all(self) -> None:
        """Stops all requests without an answer."""
        for task in list(self.tasks.values()):
            task.cancel()

    def _forget(self, request_id: str) -> None:
        del self.requests[request_id], self.tasks[request_id]
