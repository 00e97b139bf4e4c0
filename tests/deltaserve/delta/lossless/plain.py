"""A decoder of streams as docs/delta-format.md tells it: Python integers, one lane and one symbol at a time."""

from __future__ import annotations

from collections.abc import Sequence


def decode_stream(stream: bytes, size: int) -> bytes:
    """Returns the bytes of a well-formed stream."""
    _, stride, log_block, _ = stream[:4]
    sizes = [-(-(size - part) // stride) for part in range(stride)]
    descriptors = [stream[4 + 4 * part : 8 + 4 * part] for part in range(stride)]
    at, tables = 4 + 4 * stride, {}
    for part, (kind, first, last, width) in enumerate(descriptors):
        if kind == 1:
            length = -(-(last - first + 1) * width // 32) * 4
            bits = int.from_bytes(stream[at : at + length], "little")
            tables[part] = [0] * 256
            for symbol in range(first, last + 1):
                tables[part][symbol] = bits >> (symbol - first) * width & (1 << width) - 1
            at += length
    blocks = [
        (part, begin, min(1 << log_block, sizes[part] - begin))
        for part in tables
        for begin in range(0, sizes[part], 1 << log_block)
    ]
    ends = [int.from_bytes(stream[at + 4 * i : at + 4 * i + 4], "little") for i in range(len(blocks))]
    at += 4 * len(blocks)
    states = [int.from_bytes(stream[at + 4 * i : at + 4 * i + 4], "little") for i in range(32 * len(blocks))]
    at += 128 * len(blocks)
    count = ends[-1] if ends else 0
    words = [int.from_bytes(stream[at + 2 * i : at + 2 * i + 2], "little") for i in range(count)]
    at += 2 * count
    parts = [bytearray(part_size) for part_size in sizes]
    for number, (part, begin, length) in enumerate(blocks):
        own = words[ends[number - 1] if number else 0 : ends[number]]
        block = decode_block(states[32 * number : 32 * number + 32], own, tables[part], length)
        parts[part][begin : begin + length] = block
    for part in range(stride):
        if part not in tables:
            parts[part][:] = stream[at : at + sizes[part]]
            at += sizes[part]
    assert at == len(stream)
    return bytes(parts[i % stride][i // stride] for i in range(size))


def decode_block(states: Sequence[int], words: Sequence[int], frequencies: Sequence[int], size: int) -> bytes:
    """Returns the bytes of one block, and asserts that it ends as it must."""
    slots = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
    starts = [sum(frequencies[:symbol]) for symbol in range(256)]
    lanes, taken, out = list(states), 0, bytearray(-(-size // 128) * 128)
    for step in range(4 * -(-size // 128)):
        for lane, x in enumerate(lanes):
            symbol = slots[x % 4096]
            out[step // 4 * 128 + lane * 4 + step % 4] = symbol
            lanes[lane] = frequencies[symbol] * (x // 4096) + x % 4096 - starts[symbol]
            if lanes[lane] < 1 << 15:
                lanes[lane] = lanes[lane] << 16 | words[taken]
                taken += 1
    assert taken == len(words)
    assert lanes == [1 << 15] * 32
    return bytes(out[:size])
