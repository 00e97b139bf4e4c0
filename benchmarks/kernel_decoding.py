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
from deltaserve.ops.decode_lossless import JOB, decode_lossless, plan_stream
from deltaserve.ops.kernel_layout import to_kernel_layout
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.merge_packed import merge_packed

_N, _K = 14336, 4096
_STREAM_BYTES = 16 << 20


def measure_decoding(kernels: KernelLibrary, pool: Pool, copy: float, timer: Timer) -> dict[str, float]:
    """Prints and returns GB/s: of raw bytes for streams, of planes for repacking, of all bytes moved for merging."""
    rates = {"decode_lossless int2": _lossless(kernels, 2, timer), "decode_lossless int4": _lossless(kernels, 4, timer)}
    for codec in ("sign1", "int2", "int3", "int4"):
        rates[f"repack {codec}"] = _repack(kernels, pool, codec, timer)
    for codec in ("sign1", "int2", "int4", "lr16_sign1"):
        rates[f"merge {codec}"] = _merge(kernels, pool, codec, timer)
    for name, rate in rates.items():
        print(f"{name:<22} {rate:>7.1f} GB/s {100 * rate / copy:>6.1f}% of copy")
    return rates


def gaussian_codes(bits: int, size: int) -> np.ndarray:
    """Returns packed codes as of a quantised Gaussian, uint8 [size]."""
    levels = 1 << bits
    step = {2: 1.0, 4: 0.335}[bits]
    values = np.random.default_rng(0).standard_normal(size * 8 // bits, dtype=np.float32)
    codes = np.clip(np.floor(values / step) + levels // 2, 0, levels - 1).astype(np.uint8)
    return (codes.reshape(size, 8 // bits) << (bits * np.arange(8 // bits, dtype=np.uint8))).sum(1, dtype=np.uint8)


def _lossless(kernels: KernelLibrary, bits: int, timer: Timer) -> float:
    """Eight streams after each other, as layers of a delta would come."""
    raw = gaussian_codes(bits, _STREAM_BYTES)
    stream = encode(raw)
    planned = plan_stream(stream, raw.size)
    failed = torch.zeros(1, dtype=torch.int32, device=kernels.device)
    moved = torch.from_numpy(stream.copy()).to(kernels.device)
    plane = torch.empty(raw.size, dtype=torch.uint8, device=kernels.device)
    decode_lossless(kernels, plane, moved, planned, failed)
    if int(failed) or not np.array_equal(plane.cpu().numpy(), raw):
        raise SystemExit("decode_lossless: wrong bytes")
    records = [_records(planned.jobs, moved.clone(), plane.clone()) for _ in range(8)]
    kernel = kernels.get("decode_lossless")
    us = timer(lambda: [kernel(len(planned.jobs), 256, 4 * (4096 + 256), (r[0], failed)) for r in records])
    return 8 * raw.size / us / 1e3


def _records(jobs: np.ndarray, stream: torch.Tensor, plane: torch.Tensor) -> tuple[torch.Tensor, ...]:
    filled = jobs.copy()
    for name in ("table", "ends", "states", "words"):
        filled[name] += np.uint64(stream.data_ptr())
    filled["table"][jobs["width"] == 0] = 0
    filled["out"] += np.uint64(plane.data_ptr())
    if filled.dtype != JOB:
        raise SystemExit("jobs changed their layout")
    return torch.from_numpy(filled.view(np.uint8)).to(plane.device), stream, plane


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
