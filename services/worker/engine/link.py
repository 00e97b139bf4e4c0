"""The engine's end of the socket to the front: never blocks a step, and wakes up for the loader thread too."""

from __future__ import annotations

import contextlib
import os
import select
import socket

from services.worker.messages import FromEngine, ToEngine
from services.worker.wire import FrameBuffer, encode, to_engine_decoder

MAX_UNSENT_BYTES = 64 << 20  # beyond this the front is stuck, and the engine waits for it
READ_BYTES = 1 << 20


class Link:
    """Sends and receives frames without blocking. Only `wake` may be called from other threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._frames = FrameBuffer(to_engine_decoder())
        self._unsent = bytearray()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def send(self, message: FromEngine) -> None:
        """Sends a message, now if the socket takes it, else during the next calls."""
        self._unsent += encode(message)
        self._flush()
        while len(self._unsent) > MAX_UNSENT_BYTES:
            select.select([], [self._socket], [])
            self._flush()

    def receive(self, timeout: float | None) -> list[ToEngine]:
        """Returns the messages that have arrived, waiting up to `timeout` seconds (None: for ever) for one or for wake.

        Raises:
            EOFError: the front has gone.
        """
        writing: list[socket.socket | int] = [self._socket] if self._unsent else []
        reading: list[socket.socket | int] = [self._socket, self._wake_read]
        readable, writable, _ = select.select(reading, writing, [], timeout)
        if writable:
            self._flush()
        if self._wake_read in readable:
            os.read(self._wake_read, READ_BYTES)
        if self._socket not in readable:
            return []
        try:
            data = self._socket.recv(READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError("the front has closed its end")
        return self._frames.feed(data)

    def wake(self) -> None:
        """Ends a wait of `receive`; safe from any thread."""
        with contextlib.suppress(BlockingIOError):  # full of wake-ups that are still to be seen
            os.write(self._wake_write, b"\0")

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError("the front has closed its end") from error
