import asyncio
import struct

import pytest

from deltaserve.errors import FormatError
from services.worker.messages import Abort, Add, Drop, Output, Sampling, Step
from services.worker.wire import (
    MAX_FRAME_BYTES,
    FrameBuffer,
    encode,
    from_engine_decoder,
    read_message,
    to_engine_decoder,
)

ADD = Add(sequence=1, revision="m@1", prompt=[1, 2], sampling=Sampling(seed=1 << 63, logit_bias={3: 1.5}), deadline=2.5)


def test_messages_survive_any_cut_of_the_stream():
    messages = [ADD, Abort(7), ADD]
    data = b"".join(encode(m) for m in messages)
    for size in (1, 3, 10, len(data)):
        buffer = FrameBuffer(to_engine_decoder())
        found = [m for i in range(0, len(data), size) for m in buffer.feed(data[i : i + size])]
        assert found == messages


async def test_the_front_reads_messages_until_the_engine_has_gone():
    reader = asyncio.StreamReader()
    step = Step([Output(sequence=1, tokens=[5], finish="stop", stop_token=5)])
    reader.feed_data(encode(step) + b"\x01")
    reader.feed_eof()
    decoder = from_engine_decoder()
    assert await read_message(reader, decoder) == step
    with pytest.raises(EOFError):
        await read_message(reader, decoder)


@pytest.mark.parametrize(
    "data", [struct.pack("<I", MAX_FRAME_BYTES + 1), struct.pack("<I", 1) + b"\xc1", struct.pack("<I", 1) + b"\x01"]
)
async def test_what_is_no_frame_is_refused(data):
    with pytest.raises(FormatError):
        FrameBuffer(to_engine_decoder()).feed(data)
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    with pytest.raises(FormatError):
        await read_message(reader, from_engine_decoder())


def test_text_that_is_no_utf8_is_refused():
    with pytest.raises(FormatError):
        FrameBuffer(to_engine_decoder()).feed(encode(Drop("m@1")).replace(b"m@1", b"m\xff1"))
