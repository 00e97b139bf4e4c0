"""The engine process: started, listened to, and its death noticed."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import msgspec

from deltaserve.errors import InternalError
from services.worker import wire
from services.worker.engine.settings import EngineSettings
from services.worker.messages import FromEngine, Ready, Shutdown, ToEngine, Vocabulary

log = logging.getLogger(__name__)

_VOCABULARIES = 8  # kept by the engine; fine-tunes of one base nearly always share one


class Engine:
    """A running engine process.

    Attributes:
        ready: what its first message said.
        lost: done, with the process's exit status, when it has gone.
    """

    def __init__(self, process: BaseProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ready: Ready
        self.lost: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._process = process
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = wire.from_engine_decoder()
        self._listening: asyncio.Task[None]
        self._taught: OrderedDict[str, None] = OrderedDict()  # keys of vocabularies, last used last

    @classmethod
    async def start(cls, settings: EngineSettings, receive: Callable[[FromEngine], None]) -> Engine:
        """Spawns an engine and returns once its base is loaded and warmed up.

        Args:
            settings: of the engine.
            receive: called on the event loop with every message but Ready.

        Raises:
            InternalError: the process ended before it was ready; its log says why.
        """
        ours, theirs = socket.socketpair()
        context = multiprocessing.get_context("spawn")
        # one with ranks has processes of its own, which a daemon may not; it leaves when its socket closes
        process = context.Process(
            target=_run, args=(theirs, settings), name="engine", daemon=settings.tensor_parallel == 1
        )
        await asyncio.to_thread(process.start)
        theirs.close()
        engine = cls(process, *await asyncio.open_unix_connection(sock=ours))
        try:
            engine.ready = await engine._first_message()
        except BaseException:
            engine._writer.close()
            process.kill()
            raise
        engine._listening = asyncio.create_task(engine._listen(receive))
        return engine

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Sends a message; after the engine's death it goes nowhere."""
        if not self.lost.done():
            self._writer.write(wire.encode(message))

    def teach(self, vocabulary: Vocabulary) -> None:
        """Sends a vocabulary unless the engine has it; of more than it keeps, the one unused for longest goes."""
        if vocabulary.key not in self._taught:
            self.send(vocabulary)
        self._taught[vocabulary.key] = None
        self._taught.move_to_end(vocabulary.key)
        if len(self._taught) > _VOCABULARIES:
            self.send(Vocabulary(key=self._taught.popitem(last=False)[0]))

    async def stop(self, patience_seconds: float = 5.0) -> None:
        """Asks the engine to leave and makes sure that it does."""
        self.send(Shutdown())
        await asyncio.wait({self.lost}, timeout=patience_seconds)
        if not self.lost.done():
            log.warning("engine %s does not leave; killing it", self.pid)
            self._process.kill()
        await self._listening

    async def _first_message(self) -> Ready:
        try:
            message = await wire.read_message(self._reader, self._decoder)
        except (EOFError, ConnectionError) as error:
            status = await self._exit_status()
            raise InternalError(f"the engine ended with status {status} before it was ready; see its log") from error
        if not isinstance(message, Ready):
            raise InternalError(f"the engine began with {type(message).__name__}; expected Ready")
        return message

    async def _listen(self, receive: Callable[[FromEngine], None]) -> None:
        try:
            while True:
                receive(await wire.read_message(self._reader, self._decoder))
        except (EOFError, ConnectionError):
            pass
        except Exception:  # whatever it is, requests must not hang: the engine counts as lost
            log.exception("a message of the engine could not be handled; ending the engine")
            self._process.kill()
        finally:
            self._writer.close()
            self.lost.set_result(await self._exit_status())

    async def _exit_status(self, patience_seconds: float = 5.0) -> int:
        """Waits for the process to end; one that lives on without its socket is killed."""
        await asyncio.to_thread(self._process.join, patience_seconds)
        if self._process.exitcode is None:
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        return -1 if self._process.exitcode is None else self._process.exitcode


def _run(sock: socket.socket, settings: EngineSettings) -> None:
    from services.worker.engine.process import run  # here: the front has no use for torch

    run(sock, settings)
