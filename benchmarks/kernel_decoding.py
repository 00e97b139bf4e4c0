"""Rates of the kernels that prepare deltas: lossless decoding, repacking, merging."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.kernel_cases import Case, Pool, build
from benchmarks.kernel_timing import Timer
from deltaserve.delta.codecs import get_codec
from deltaserve.delta.lossless import encode
from deltaserve.delta.manifest import TensorEntry
from deltaserve.delta.packed import PackedTensor
from deltaserve.ops.decode_lossless import Decoding, decode_lossless, decoding_jobs, plan_stream
from deltaserve.ops.kernel_layout import to_kernel_layout
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.merge_packed import merge_packed

_N, _K = 14336, 4096
_STREAM_BYTES = 16 << 20


def measure_decoding(kernels: KernelLibrary, pool: Pool, copy: float, timer: Timer) -> dict[str, float]:
    """Prints and returns GB/s: of raw bytes for streams, of planes for repacking, of all bytes moved for merging."""
    rates = {
        f"decode_lossless int{bits}, {streams} at once": _lossless(kernels, bits, streams, timer)
        for bits in (2, 4)
        for streams in (1, 4, 16)
    }
    for codec in ("sign1", "int2", "int3", "int4"):
        rates[f"repack {codec}"] = _repack(kernels, pool, codec, timer)
    for codec in ("sign1", "int2", "int4", "lr16_sign1"):
        rates[f"merge {codec}"] = _merge(kernels, pool, codec, timer)
    for name, rate in rates.items():
        print(f"{name:<34} {rate:>7.1f} GB/s {100 * rate / copy:>6.1f}% of copy")
    return rates


def gaussian_codes(bits: int, size: int) -> np.ndarray:
    """Returns packed codes as of a quantised Gaussian, uint8 [size]."""
    levels = 1 << bits
    step = {2: 1.0, 4: 0.335}[bits]
    values = np.random.default_rng(0).standard_normal(size * 8 // bits, dtype=np.float32)
    codes = np.clip(np.floor(values / step) + levels // 2, 0, levels - 1).astype(np.uint8)
    return (codes.reshape(size, 8 // bits) << (bits * np.arange(8 // bits, dtype=np.uint8))).sum(1, dtype=np.uint8)


def _lossless(kernels: KernelLibrary, bits: int, streams: int, timer: Timer) -> float:
    """Launches of so many streams of 16 MiB each; a layer of an 8B model's int2 delta has 55 MB."""
    raw = gaussian_codes(bits, _STREAM_BYTES)
    stream = encode(raw)
    planned = plan_stream(stream, raw.size)
    moved = torch.from_numpy(stream.copy()).to(kernels.device)
    decodings = [
        Decoding(torch.empty(raw.size, dtype=torch.uint8, device=kernels.device), moved.clone(), planned)
        for _ in range(streams)
    ]
    jobs = decoding_jobs(decodings, kernels.device)
    failed = torch.zeros(1, dtype=torch.int32, device=kernels.device)
    us = timer(lambda: [decode_lossless(kernels, jobs, failed) for _ in range(4)]) / 4
    if int(failed) or not all(np.array_equal(one.plane.cpu().numpy(), raw) for one in decodings):
        raise SystemExit("decode_lossless: wrong bytes")
    return streams * raw.size / us / 1e3


def _repack(kernels: KernelLibrary, pool: Pool, name: str, timer: Timer) -> float:
    codec = get_codec(name)
    params = {} if name == "sign1" else {"group_size": 128}
    specs = codec.plane_specs((_N, _K), "BF16", params)
    planes = {
        plane: pool.codes(spec.shape[0] * spec.shape[1]).view(spec.shape)
        if spec.dtype == "U8"
        else pool.values(torch.Size(spec.shape).numel()).view(spec.shape)
        for plane, spec in specs.items()
    }
    weight = "model.layers.0.mlp.up_proj.weight"
    entry = TensorEntry(
        name=weight,
        kind="linear",
        shape=[_N, _K],
        dtype="BF16",
        codec=name,
        base=weight,
        params=params,
        bytes=0,
        sha256="",
    )
    packed = PackedTensor(entry, planes)
    us = timer(lambda: [to_kernel_layout(packed, kernels) for _ in range(4)]) / 4
    return packed.nbytes / us / 1e3


def _merge(kernels: KernelLibrary, pool: Pool, codec: str, timer: Timer) -> float:
    built = build(Case("8b", "gate_up", codec, 1, 1), pool)
    bases = pool.dense(_N, _K)
    out = torch.empty_like(bases[0])
    us = timer(lambda: [merge_packed(kernels, out, base, built.tables[0], 0, 0) for base in bases])
    packed = built.packed_bytes // 2
    return len(bases) * (packed + 2 * out.nbytes) / us / 1e3
