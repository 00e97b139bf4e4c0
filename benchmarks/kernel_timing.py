"""Times of work on the GPU: CUDA graphs, events, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

_REPLAYS = 9
_COPY_BYTES = 2 << 30


Timer = Callable[[Callable[[], object]], float]
"""Tells how many microseconds some launches take."""


def graph_microseconds(work: Callable[[], object]) -> float:
    """Returns the median time of some launches, captured in a graph: gaps between launches are the GPU's alone."""
    stream = torch.cuda.current_stream()
    work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    graph.replay()
    return _median(graph.replay)


def copy_rate() -> float:
    """Returns GB/s of a large device copy, counting what is read and what is written."""
    source = torch.randint(0, 255, (_COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * _COPY_BYTES / _median(lambda: target.copy_(source)) / 1e3


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)
