"""The engine in a process of its own, over a real socket."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from services.worker.engine.process import build_engine, run
from services.worker.engine.settings import EngineSettings
from services.worker.messages import Add, DeltaChanged, FromEngine, Load, Ready, Sampling, Shutdown, Step, ToEngine
from services.worker.wire import FrameBuffer, encode, from_engine_decoder

SPAWN = multiprocessing.get_context("spawn")


class Front:
    """Blocking end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.settimeout(120)
        self._frames = FrameBuffer(from_engine_decoder())

    def send(self, message: ToEngine) -> None:
        self._socket.sendall(encode(message))

    def receive(self) -> list[FromEngine]:
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        return self._frames.feed(data)

    def until(self, kind: type, count: int = 1) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            found += [m for m in self.receive() if isinstance(m, kind)]
        return found


@contextmanager
def engine_process(**settings: Any) -> Iterator[tuple[Front, Any, socket.socket]]:
    ours, theirs = socket.socketpair()
    process = SPAWN.Process(target=run, args=(theirs, EngineSettings(threads=1, **settings)))
    process.start()
    theirs.close()
    try:
        yield Front(ours), process, ours
    finally:
        ours.close()
        process.join(30)
        process.kill()


def test_the_whole_life_of_an_engine(llama, pack):
    with engine_process(base_folder=str(llama), kv_bytes=1 << 20) as (front, process, _):
        ready = front.until(Ready)[0]
        assert (ready.vocab_size, ready.device, ready.context_length) == (96, "cpu", 256)
        front.send(Load("t@1", str(pack(llama, "int4"))))
        assert front.until(DeltaChanged)[0].state == "resident"
        for i, revision in enumerate(["", "t@1"]):
            front.send(Add(sequence=i, revision=revision, prompt=[1, 2], sampling=Sampling(max_tokens=5)))
        tokens: dict[int, list[int]] = {0: [], 1: []}
        while any(len(found) < 5 for found in tokens.values()):
            for output in front.until(Step)[0].outputs:
                tokens[output.sequence] += output.tokens
        front.send(Shutdown())
        process.join(30)
        assert process.exitcode == 0


def test_it_leaves_when_the_front_has_gone(llama):
    with engine_process(base_folder=str(llama)) as (front, process, sock):
        front.until(Ready)
        sock.close()
        process.join(30)
        assert process.exitcode == 0


def test_a_base_that_cannot_be_served_ends_the_process_with_an_error(tmp_path):
    with engine_process(base_folder=str(tmp_path)) as (front, process, _):
        with pytest.raises(EOFError):
            front.until(Ready)
        process.join(30)
        assert process.exitcode == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float32"),
        ({"kv_bytes": 100}, "kv_bytes is 100; expected at least"),
        ({"max_context": 10_000}, "max_context is 10000; the base was made for 256"),
    ],
)
def test_settings_that_cannot_be_served_are_named(llama, settings, message):
    from deltaserve.errors import InvalidArgumentError

    with pytest.raises(InvalidArgumentError, match=message):
        build_engine(EngineSettings(base_folder=str(llama), **settings), lambda _: None, lambda: None)
