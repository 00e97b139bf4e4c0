import socket
import threading
import time

import pytest

from services.worker.engine.link import Link
from services.worker.messages import Abort, Output, Step
from services.worker.wire import FrameBuffer, encode, from_engine_decoder


@pytest.fixture
def pair():
    engine, front = socket.socketpair()
    with engine, front:
        yield Link(engine), front


def test_receive_returns_what_came_and_does_not_wait_when_told_so(pair):
    link, front = pair
    assert link.receive(0) == []
    front.sendall(encode(Abort(1)) + encode(Abort(2)))
    assert link.receive(None) == [Abort(1), Abort(2)]


def test_wake_ends_a_wait(pair):
    link, _ = pair
    threading.Timer(0.05, link.wake).start()
    began = time.monotonic()
    assert link.receive(10) == []
    assert time.monotonic() - began < 5


def test_a_front_that_reads_late_gets_everything_in_order(pair):
    link, front = pair
    steps = [Step([Output(sequence=i, tokens=[1] * 2000)]) for i in range(500)]
    for step in steps:
        link.send(step)
    buffer, found = FrameBuffer(from_engine_decoder()), []
    while len(found) < len(steps):
        link.receive(0)
        found += buffer.feed(front.recv(1 << 20))
    assert found == steps


def test_a_front_that_has_gone_is_the_end(pair):
    link, front = pair
    front.close()
    with pytest.raises(EOFError):
        link.receive(None)
    with pytest.raises(EOFError):
        link.send(Step([]))
