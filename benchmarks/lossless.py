"""What the lossless stage saves and costs, plane by plane: sizes against the entropy and zlib, and speeds.

The fine-tune is packed without calibration by each codec, or an existing delta's folder is taken. Planes of a kind are
counted together; "floor" is the order-0 entropy of codes (of bytes by their place in the element, where a plane holds
no codes) with a table for each plane that costs nothing. "written" is what the writer stores: the stream where it saves
2 % and 16 KiB of the plane, else the plane. "joined" are all planes of the kind as one, which is nearer to the sizes of
real models. Speeds are raw bytes over CPU seconds of one thread. The last lines code one large plane of each width.

    .venv/bin/python -m benchmarks.lossless --base ../shared/zoo/base --tuned ../shared/zoo/conj_fr
    .venv/bin/python -m benchmarks.lossless --delta examples/models/section
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.hardware import describe
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import classify
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.compatibility import base_tensor_of
from deltaserve.delta.dtypes import as_bytes
from deltaserve.delta.lossless import decode, encode, wrap
from deltaserve.delta.packed import PackedTensor, fit_rows
from deltaserve.delta.packing import unpack
from deltaserve.delta.reader import DeltaReader

CODECS = ("sign1", "int2", "int3", "int4", "dense")
LARGE = 32 << 20
_PIECE = 1 << 20


@dataclass
class Row:
    """Bytes and seconds of planes of one kind."""

    planes: int = 0
    raw: int = 0
    stream: int = 0
    written: int = 0
    floor: float = 0.0
    zlib: int = 0
    encoding: float = 0.0
    decoding: float = 0.0
    zlib_encoding: float = 0.0
    zlib_decoding: float = 0.0
    joined: list[bytes] = field(default_factory=list)

    def line(self, name: str) -> str:
        """Returns the table's line."""
        joined = encode(np.frombuffer(b"".join(self.joined), dtype=np.uint8)).size
        counts = (self.written, self.stream, joined, self.floor, self.zlib)
        sizes = "".join(f"{size / self.raw:9.4f}" for size in counts)
        seconds = (self.encoding, self.decoding, self.zlib_encoding, self.zlib_decoding)
        speeds = "".join(f"{self.raw / time / 1e6:8.1f}" for time in seconds)
        return f"{name:28}{self.planes:7}{self.raw:12,}{sizes}{self.stream / self.floor:9.3f}{speeds}"


def pack(base: Checkpoint, tuned: Checkpoint, codec: str, group: int) -> Iterator[PackedTensor]:
    """Yields all tensors of a fine-tune in a codec, embeddings in int4 unless it is dense."""
    for name, header in tuned.tensors.items():
        weight, kind = tuned.read(name), classify(name, header.shape)
        chosen = "int4" if kind in ("embedding", "lm_head") and codec != "dense" else codec
        if kind not in ("linear", "embedding", "lm_head") or chosen == "dense":
            yield code_dense(name, weight)
            continue
        source = base_tensor_of(name, base.tensors)
        delta = weight.float() - fit_rows(base.read(source).float(), weight.shape[0])
        params = {} if chosen == "sign1" else {"group_size": group}
        yield code_delta(name, delta, weight.dtype, chosen, base=source, params=params)


def entropy(values: np.ndarray) -> float:
    """Returns the bytes of small whole numbers at their order-0 entropy."""
    counts = np.bincount(values.reshape(-1))
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum()) * values.size / 8


def floor(tensor: PackedTensor, plane: str) -> float:
    """Returns the bytes that order-0 coding of a plane needs at least."""
    values, codec = tensor.planes[plane], tensor.entry.codec
    if plane == "codes" and codec.startswith("int"):
        return entropy(unpack(values, int(codec[3:]), tensor.shape[1]).numpy())
    raw = np.frombuffer(as_bytes(values.contiguous()), dtype=np.uint8)
    if plane == "signs":
        return entropy(np.unpackbits(raw))
    return sum(entropy(raw[place :: values.itemsize]) for place in range(values.itemsize))


def measure(row: Row, tensor: PackedTensor, plane: str) -> None:
    """Codes a plane as the writer does and adds its figures."""
    values = tensor.planes[plane].contiguous()
    raw = np.frombuffer(as_bytes(values), dtype=np.uint8)
    times = [time.thread_time()]
    stream = encode(raw)
    times.append(time.thread_time())
    back = decode(stream, raw.size)
    times.append(time.thread_time())
    packed = zlib.compress(raw.tobytes(), 1)
    times.append(time.thread_time())
    zlib.decompress(packed, bufsize=raw.size)
    times.append(time.thread_time())
    assert np.array_equal(back, raw)
    wrapped = wrap(values)
    row.joined.append(raw.tobytes())
    row.planes += 1
    row.raw += raw.size
    row.stream += stream.size
    row.written += raw.size if wrapped is None else wrapped.nbytes
    row.floor += floor(tensor, plane)
    row.zlib += len(packed)
    row.encoding += times[1] - times[0]
    row.decoding += times[2] - times[1]
    row.zlib_encoding += times[3] - times[2]
    row.zlib_decoding += times[4] - times[3]


def table(title: str, tensors: Iterator[PackedTensor]) -> None:
    """Prints the figures of a delta, one line for each class, codec and plane, and one for all."""
    print(f"\n{title}")
    heads = ("written", "stream", "joined", "floor", "zlib-1", "/floor")
    speeds = "".join(f"{head:>8}" for head in ("enc", "dec", "zlib e", "zlib d"))
    print(f"{'class codec plane':28}{'planes':>7}{'raw':>12}{''.join(f'{head:>9}' for head in heads)}{speeds} MB/s")
    rows: dict[str, Row] = {}
    for tensor in tensors:
        for plane in tensor.planes:
            measure(rows.setdefault(f"{tensor.entry.kind} {tensor.entry.codec} {plane}", Row()), tensor, plane)
    for name, row in sorted(rows.items()):
        print(row.line(name))
    written, raw = (sum(getattr(row, part) for row in rows.values()) for part in ("written", "raw"))
    print(f"all planes: {raw:,} bytes, {written:,} as written, {written / raw:.4f}")


def large(bits: int) -> None:
    """Prints the speeds of one plane of Gaussian codes."""
    random = np.random.default_rng(0)
    levels = 1 << bits
    step = {2: 0.996, 3: 0.586, 4: 0.335}[bits]  # of the grid with the least error
    normal = random.standard_normal(LARGE * 8 // bits, dtype=np.float32) / step + levels / 2
    codes = np.clip(np.floor(normal), 0, levels - 1).astype(np.uint8)
    raw = np.packbits(np.unpackbits(codes[:, None], axis=1, bitorder="little", count=bits), bitorder="little")
    begin = time.thread_time()
    stream = encode(raw)
    middle = time.thread_time()
    back = decode(stream, raw.size)
    end = time.thread_time()
    assert np.array_equal(back, raw)
    pieces = [raw[begin : begin + _PIECE].tobytes() for begin in range(0, raw.size, _PIECE)]
    began = time.thread_time()
    packed = [zlib.compress(piece, 1) for piece in pieces]
    zipped = time.thread_time()
    assert all(len(zlib.decompress(piece, bufsize=_PIECE)) == _PIECE for piece in packed)
    done = time.thread_time()
    print(
        f"one plane of {raw.size >> 20} MiB, {bits}-bit codes of a Gaussian: ratio {stream.size / raw.size:.4f}, floor "
        f"{entropy(codes) / raw.size:.4f}, encode {raw.size / (middle - begin) / 1e6:.0f} MB/s, decode "
        f"{raw.size / (end - middle) / 1e6:.0f} MB/s; zlib-1 by the MiB {sum(map(len, packed)) / raw.size:.4f}, "
        f"{raw.size / (zipped - began) / 1e6:.0f} MB/s, {raw.size / (done - zipped) / 1e6:.0f} MB/s"
    )


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of the base, with --tuned")
    parser.add_argument("--tuned", type=Path, help="folder of a fine-tune of it")
    parser.add_argument("--delta", type=Path, nargs="*", default=[], help="folders of packed deltas")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--group", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# {describe()}, one thread, numpy {np.__version__}")
    for folder in arguments.delta:
        reader = DeltaReader.open(folder, verify=False)
        table(f"{reader.manifest.model}, as packed", (reader.tensor(name) for name in reader.names()))
    if arguments.base and arguments.tuned:
        base, tuned = Checkpoint.open(arguments.base), Checkpoint.open(arguments.tuned)
        for codec in arguments.codecs.split(","):
            title = f"{arguments.tuned.name}, linears in {codec}, packed without calibration"
            table(title, pack(base, tuned, codec, arguments.group))
    print()
    for bits in (2, 3, 4):
        large(bits)


if __name__ == "__main__":
    main()
