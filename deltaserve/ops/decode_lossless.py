"""Lossless streams decoded on the device, so that the copy to it carries the smaller bytes.

The reference is deltaserve.delta.lossless.decode, equal bit for bit; docs/delta-format.md has the format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from deltaserve.delta.lossless import tables
from deltaserve.delta.lossless.stream import StreamLayout, read_layout
from deltaserve.errors import FormatError
from deltaserve.ops.kernel_library import KernelLibrary

JOB = np.dtype(
    [
        *((name, np.uint64) for name in ("table", "ends", "states", "words", "out")),
        *((name, np.uint32) for name in ("size", "first_block", "before")),
        ("block_log", np.uint16),
        ("stride", np.uint16),
        *((name, np.uint8) for name in ("first", "last", "width")),
        ("spare", np.uint8, 5),
    ],
    align=True,
)
"""struct DecodeJob of kernels/decode_lossless.cu."""

_BLOCKS_PER_JOB = 8
_THREADS = 256
_SHARED = 4 * (4096 + 256)

Jobs = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class StreamJobs:
    """A stream that has been looked through on the host.

    Attributes:
        size: bytes of the plane.
        jobs: records of JOB whose addresses are still offsets, in the stream and in the plane.
    """

    size: int
    jobs: Jobs


def plan_stream(stream: npt.NDArray[np.uint8], size: int) -> StreamJobs:
    """Checks a stream on the host and divides it into the work of thread blocks.

    Args:
        stream: uint8 [m], on the host: reads the head, the tables and a word for each block.
        size: bytes of the plane that it stands for.

    Raises:
        FormatError: malformed; what is not found here is damage within blocks, which `decode_lossless` reports.
    """
    layout = read_layout(stream, size)
    count = sum(plane.blocks for plane in layout.planes)
    ends = stream[layout.ends_at : layout.ends_at + 4 * count].copy().view("<u4").astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if (lengths < 0).any() or (lengths > layout.block).any():
        raise FormatError(f"lossless stream: a block ends before it begins or has more than {layout.block} words")
    for plane in layout.planes:
        if plane.table:
            tables.unpack(stream[plane.at : plane.at + plane.table.bytes], plane.table)
    parts = [_plane_jobs(layout, number) for number in range(len(layout.planes))]
    return StreamJobs(size, np.concatenate(parts))


@dataclass(frozen=True, slots=True)
class Decoding:
    """One stream and the plane that it becomes.

    Attributes:
        plane: contiguous, of `planned.size` bytes; what it holds is written over.
        stream: uint8 [m], the bytes that were planned; on 4 bytes.
        planned: from `plan_stream`.
    """

    plane: torch.Tensor
    stream: torch.Tensor
    planned: StreamJobs


def decoding_jobs(decodings: Sequence[Decoding], device: torch.device) -> torch.Tensor:
    """Returns the work of one launch on the device, uint8 [jobs, 64], for streams and planes that are there.

    Raises:
        ValueError: a plane of another size.
    """
    return (
        torch.from_numpy(np.concatenate([_addressed(one) for one in decodings]).view(np.uint8)).to(device).view(-1, 64)
    )


def decode_lossless(kernels: KernelLibrary, jobs: torch.Tensor, failed: torch.Tensor) -> None:
    """Decodes streams on the kernels' stream, all in one launch: those of a layer fill a GPU, one does not.

    Args:
        kernels: of the device that everything is on.
        jobs: from `decoding_jobs`; keep it, streams and planes until the decoding is done.
        failed: int32 [1], zero before; set to 1 when a block does not end as it must. Many launches may share one;
            look at it when their results are about to be used.
    """
    if len(jobs):
        kernels.get("decode_lossless")(len(jobs), _THREADS, _SHARED, (jobs, failed))


def _addressed(one: Decoding) -> Jobs:
    """Returns a stream's jobs with offsets turned into addresses."""
    if one.plane.nbytes != one.planned.size or not one.plane.is_contiguous():
        raise ValueError(f"a plane of {one.plane.nbytes} bytes for a stream of {one.planned.size}")
    jobs = one.planned.jobs.copy()
    stream = np.uint64(one.stream.data_ptr())
    for name in ("ends", "states", "words"):
        jobs[name] += stream
    jobs["table"] = np.where(jobs["width"] == 0, np.uint64(0), jobs["table"] + stream)
    jobs["out"] += np.uint64(one.plane.data_ptr())
    return jobs


def _plane_jobs(layout: StreamLayout, number: int) -> Jobs:
    plane = layout.planes[number]
    blocks = -(-plane.size // layout.block)
    jobs = np.zeros(-(-blocks // _BLOCKS_PER_JOB), dtype=JOB)
    jobs["first_block"] = np.arange(len(jobs)) * _BLOCKS_PER_JOB
    jobs["size"], jobs["before"] = plane.size, plane.before
    jobs["block_log"], jobs["stride"], jobs["out"] = layout.block.bit_length() - 1, len(layout.planes), number
    if plane.table is None:
        jobs["words"] = plane.at
        return jobs
    jobs["table"], jobs["ends"], jobs["states"], jobs["words"] = (
        plane.at,
        layout.ends_at,
        layout.states_at,
        layout.words_at,
    )
    jobs["first"], jobs["last"], jobs["width"] = plane.table.first, plane.table.last, plane.table.width
    return jobs
