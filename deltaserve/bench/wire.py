"""How requests reach the server: what the runner asks of a protocol."""

from __future__ import annotations

from typing import Protocol

from deltaserve.bench.recorder import Recorder
from deltaserve.bench.workload import Planned


class AnswerError(Exception):
    """An answer that is none; the argument is the status under which it is counted."""

    @property
    def status(self) -> str:
        """The status."""
        return str(self.args[0])


class Wire(Protocol):
    """A connected protocol."""

    async def open(self) -> None:
        """Connects, so that the first request does not pay for it; raises what the connection fails with."""

    async def ask(self, planned: Planned, recorder: Recorder) -> None:
        """Sends a request and reads its answer into `recorder`, to the end or until the recorder says to leave.

        Leaving, or being cancelled, ends the request at the server too.

        Raises:
            DeltaServeError, AnswerError, OSError: the request failed.
        """

    async def models(self) -> list[str]:
        """Returns the names of the models that are served."""

    async def close(self) -> None:
        """Ends all connections."""
