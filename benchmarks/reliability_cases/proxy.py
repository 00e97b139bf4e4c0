"""A TCP proxy with faults between a client and a service: cuts, silence (a partition), slowness."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

_PIECE = 16 << 10


@dataclass
class FaultProxy:
    """Forwards connections to `target`, host:port.

    Attributes:
        address: where it listens.
        sent: bytes that clients sent through it so far.
        cuts: connections that it cut.
        cut_at: cuts all connections when `sent` passes this; None: never.
        silent: forwards nothing and cuts nothing, as a network partition does.
        delay: seconds before each piece of 16 KiB is passed on.
    """

    target: str
    address: str = ""
    sent: int = 0
    cuts: int = 0
    cut_at: int | None = None
    silent: bool = False
    delay: float = 0.0
    on_cut: Callable[[], None] = lambda: None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Cuts all connections, both ways, as a reset."""
        self.cuts += 1
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection to its end."""
        host, _, port = self.target.rpartition(":")
        try:
            ahead, behind = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, behind}
        try:
            await asyncio.gather(self._pass(reader, behind, up=True), self._pass(ahead, writer, up=False))
        finally:
            self._writers -= {writer, behind}
            for one in (writer, behind):
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                while self.silent:
                    await asyncio.sleep(0.02)
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
                if up:
                    self._count(len(data))
        writer.transport.abort()  # the other direction has nobody to answer to

    def _count(self, size: int) -> None:
        self.sent += size
        if self.cut_at is not None and self.sent >= self.cut_at:
            self.cut_at = None
            self.cut()
            self.on_cut()


@contextlib.asynccontextmanager
async def fault_proxy(target: str) -> AsyncIterator[FaultProxy]:
    """Runs a proxy before `target` on a port of its own."""
    proxy = FaultProxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await asyncio.sleep(0)
