"""Keeps an engine process alive: starts it, and starts it anew when it dies, a few times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from deltaserve.errors import InternalError
from services.worker.engine.settings import EngineSettings
from services.worker.front.engine import Engine
from services.worker.messages import FromEngine, Ready, ToEngine

log = logging.getLogger(__name__)


class Supervisor:
    """The engine of this worker, whichever process it is now.

    Attributes:
        engine: None while there is none that is ready.
        replaced: engines that were started in the place of one that died.
        change: set, and replaced by a new event, when `engine` changes.
    """

    def __init__(
        self,
        settings: EngineSettings,
        restarts: int,
        receive: Callable[[FromEngine], None],
        ready: Callable[[Ready], None],
        lost: Callable[[int], None],
    ) -> None:
        """Prepares only.

        Args:
            settings: of the engine.
            restarts: how often an engine that dies is replaced.
            receive: takes the engine's messages.
            ready: called when an engine is, before requests reach it.
            lost: called with the exit status when an engine that was ready has died.
        """
        self.engine: Engine | None = None
        self.replaced = 0
        self.change = asyncio.Event()
        self._settings = settings
        self._restarts = restarts
        self._receive = receive
        self._ready = ready
        self._lost = lost

    def send(self, message: ToEngine) -> None:
        """Sends to the engine; without one the message goes nowhere, since its requests have failed."""
        if self.engine is not None:
            self.engine.send(message)

    async def run(self) -> None:
        """Runs engines until cancelled; then stops the one that runs.

        Raises:
            InternalError: an engine ended before it was ready, or died once more than it may be restarted.
        """
        for attempt in range(self._restarts + 1):
            self.replaced = attempt
            if attempt:
                log.warning("starting the engine anew (%d of %d)", attempt, self._restarts)
            engine = await Engine.start(self._settings, self._receive)
            log.info("engine %s is ready on %s", engine.pid, engine.ready.device)
            self._ready(engine.ready)
            self._become(engine)
            try:
                status = await asyncio.shield(engine.lost)
            finally:
                self._become(None)
                await engine.stop()
            log.error("engine %s died with status %s", engine.pid, status)
            self._lost(status)
        raise InternalError(f"the engine died {self._restarts + 1} times; giving up")

    def _become(self, engine: Engine | None) -> None:
        self.engine = engine
        before, self.change = self.change, asyncio.Event()
        before.set()
