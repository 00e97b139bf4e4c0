"""Clients that read raw bytes, in a process of their own, so that they cost little and disturb nothing.

Prints one line of JSON: streams, tokens, seconds, frames, and the times to first token in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field

import uvloop

from benchmarks.router_load.http2 import Connection, connect
from deltaserve.v1 import inference_pb2 as pb

_METHOD = "/deltaserve.v1.InferenceService/Generate"
_CHANNELS = 4
_OPENING = 256  # streams that are opened at a time


@dataclass
class Seen:
    """What clients saw.

    Attributes:
        tokens: all.
        frames: messages or reads with tokens in them.
        firsts: seconds to the first token, by stream.
        opening: how many more streams may be opened before those before are answered: of thousands opened in one go
            many end as CANCELLED before the router's code sees them.
    """

    tokens: int = 0
    frames: int = 0
    firsts: list[float] = field(default_factory=list)
    opening: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_OPENING))


async def over_grpc(connection: Connection, tokens: int, flush_ms: int, seen: Seen) -> None:
    """Reads one stream of frames, unparsed."""
    request = pb.GenerateRequest(model="base", text="a", stopping=pb.StoppingParams(max_tokens=tokens))
    request.response.max_flush_ms = flush_ms
    await seen.opening.acquire()
    began, first, read, answered = time.perf_counter(), True, 0, False

    def take(data: bytes) -> None:
        nonlocal first, read, answered
        if not answered:
            answered = True
            seen.opening.release()
        if found := data.count(b" word"):
            if first:
                seen.firsts.append(time.perf_counter() - began)
                first = False
            read += found
            seen.tokens += found
            seen.frames += 1

    await connection.call(_METHOD, request.SerializeToString(), take)
    if read != tokens:
        raise RuntimeError(f"a stream ended after {read} of {tokens} tokens")


async def over_http(address: str, tokens: int, seen: Seen) -> None:
    """Reads one stream of server-sent events."""
    host, _, port = address.rpartition(":")
    began, first = time.perf_counter(), True
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": "base", "prompt": "a", "max_tokens": tokens, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        while data := await reader.read(1 << 16):
            if found := data.count(b" word"):
                if first:
                    seen.firsts.append(time.perf_counter() - began)
                    first = False
                seen.tokens += found
                seen.frames += data.count(b"data: ")
    finally:
        writer.close()


async def run(arguments: argparse.Namespace) -> None:
    """Runs the streams, together or one after the other, and tells what was seen."""
    seen = Seen()
    grpc = arguments.way == "grpc"
    channels = [await connect(arguments.address) for _ in range(arguments.channels if grpc else 0)]

    async def stream(number: int) -> None:
        if arguments.way == "http":
            await over_http(arguments.address, arguments.tokens, seen)
        else:
            await over_grpc(channels[number % len(channels)], arguments.tokens, arguments.flush_ms, seen)

    began = time.perf_counter()
    if arguments.pause is None:
        await asyncio.gather(*(stream(number) for number in range(arguments.streams)))
    else:
        for number in range(arguments.streams):
            await stream(number)
            await asyncio.sleep(arguments.pause)
    seconds = time.perf_counter() - began
    print(json.dumps({"tokens": seen.tokens, "frames": seen.frames, "seconds": seconds, "firsts": seen.firsts}))
    for channel in channels:
        channel.close()


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=("http", "grpc"), required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--channels", type=int, default=_CHANNELS)
    parser.add_argument("--flush-ms", type=int, default=0, help="gRPC: let the router gather tokens for so long")
    parser.add_argument("--pause", type=float, help="one stream at a time, with such pauses between them")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
