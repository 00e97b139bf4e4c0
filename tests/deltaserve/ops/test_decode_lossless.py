"""Streams decoded by the kernel against the CPU decoder, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaserve.delta.lossless import decode, encode
from deltaserve.errors import FormatError
from deltaserve.ops.decode_lossless import Decoding, decode_lossless, decoding_jobs, plan_stream
from deltaserve.ops.kernel_library import KernelLibrary


def skewed(size: int) -> np.ndarray:
    return np.minimum(np.random.geometric(0.05, size), 255).astype(np.uint8)


SOURCES = {
    "skewed": skewed,
    "two symbols": lambda n: np.random.choice(np.array([3, 200], np.uint8), n, p=[0.97, 0.03]),
    "one symbol": lambda n: np.full(n, 77, np.uint8),
    "fp16": lambda n: (np.random.rand(-(-n // 2)) * 0.01).astype(np.float16).view(np.uint8)[:n],
    "noise": lambda n: np.random.randint(0, 256, n, np.uint8),
    "every third": lambda n: np.where(np.arange(n) % 3 == 1, skewed(n) // 32, np.random.randint(0, 256, n)).astype(
        np.uint8
    ),
    "fp32": lambda n: np.random.randn(-(-n // 4)).astype(np.float32).view(np.uint8)[:n],
}


def run(kernels: KernelLibrary, stream: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    padded = torch.full((size + 64,), 0xA5, dtype=torch.uint8, device=kernels.device)
    failed = torch.zeros(1, dtype=torch.int32, device=kernels.device)
    moved = torch.from_numpy(stream.copy()).to(kernels.device)
    jobs = decoding_jobs([Decoding(padded[:size], moved, plan_stream(stream, size))], kernels.device)
    decode_lossless(kernels, jobs, failed)
    got = padded.cpu().numpy()
    assert jobs.numel() > 0
    assert (got[size:] == 0xA5).all()
    return got[:size], int(failed)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [1, 127, 5000, 70001])
@pytest.mark.parametrize("block", [128, 1024, 1 << 15])
def test_equals_the_cpu_s_decoder(kernels: KernelLibrary, source: str, size: int, block: int) -> None:
    if block == 128 and size > 5000:
        size = 6001
    raw = SOURCES[source](size)
    stream = encode(raw, block)
    got, failed = run(kernels, stream, size)
    assert failed == 0
    assert (got == decode(stream, size)).all()
    assert (got == raw).all()


def test_damage_is_reported_and_stays_in_bounds(kernels: KernelLibrary) -> None:
    raw = skewed(20000)
    stream = encode(raw, 1024)
    found = 0
    for _ in range(30):
        damaged = stream.copy()
        damaged[np.random.randint(8, stream.size)] ^= 1 << np.random.randint(8)
        try:
            _, failed = run(kernels, damaged, raw.size)
        except FormatError:
            failed = 1
        found += failed
    assert found >= 25  # what slips through, the tensor's sha256 finds


def test_malformed_streams_are_refused_before_anything_is_launched() -> None:
    stream = encode(skewed(9000), 1024)
    for cut in (3, 40, stream.size - 2):
        with pytest.raises(FormatError):
            plan_stream(stream[:cut], 9000)
    planned = plan_stream(stream, 9000)
    with pytest.raises(ValueError, match="plane of 10"):
        decoding_jobs(
            [Decoding(torch.zeros(10, dtype=torch.uint8), torch.from_numpy(stream.copy()), planned)],
            torch.device("cpu"),
        )


def test_streams_of_a_layer_are_decoded_in_one_launch(kernels: KernelLibrary) -> None:
    raws = {name: source(np.random.randint(1, 9000)) for name, source in SOURCES.items()}
    streams = {name: encode(raw, 1024) for name, raw in raws.items()}
    planes = {name: torch.zeros(raw.size, dtype=torch.uint8, device=kernels.device) for name, raw in raws.items()}
    decodings = [
        Decoding(planes[name], torch.from_numpy(stream.copy()).to(kernels.device), plan_stream(stream, raws[name].size))
        for name, stream in streams.items()
    ]
    failed = torch.zeros(1, dtype=torch.int32, device=kernels.device)
    decode_lossless(kernels, decoding_jobs(decodings, kernels.device), failed)
    assert int(failed) == 0
    for name, raw in raws.items():
        assert (planes[name].cpu().numpy() == raw).all(), name
