"""The compiled kernels of one device. Nothing here imports CuPy before it is asked for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from deltaserve.errors import PreconditionError
from deltaserve.ops.kernel_source import KERNELS, kernel_source

Argument = torch.Tensor | None | np.int32 | np.int64 | np.uint64
"""A tensor stands for its address, None for the null pointer; numbers are of the kernel's own width."""


class Kernel(Protocol):
    """A compiled kernel."""

    def __call__(self, grid: int, threads: int, shared_bytes: int, arguments: Sequence[Argument]) -> None:
        """Launches `grid` blocks of `threads` threads, each with `shared_bytes` of dynamic shared memory."""


class KernelLibrary(Protocol):
    """All kernels, compiled for one device."""

    @property
    def device(self) -> torch.device:
        """Where the tensors must be."""

    @property
    def multiprocessors(self) -> int:
        """Blocks that a persistent grid has."""

    def get(self, name: str) -> Kernel:
        """Returns a kernel, compiling it if need be."""


class CudaKernels:
    """Kernels of a GPU, through CuPy. Launches go to CuPy's current stream: see `stream`.

    Args:
        device: a CUDA device; None: torch's current one.
        defines: macros, to tune with.

    Raises:
        PreconditionError: there is no GPU or no CuPy; use the CPU path (deltaserve.ops.sbmm) instead.
    """

    def __init__(self, device: torch.device | None = None, defines: Mapping[str, int] | None = None) -> None:
        self._cupy = _cupy()
        self.device = device or torch.device("cuda", torch.cuda.current_device())
        self.multiprocessors: int = torch.cuda.get_device_properties(self.device).multi_processor_count
        self._options = ("-std=c++17", *(f"-D{name}={value}" for name, value in sorted((defines or {}).items())))
        self._kernels: dict[str, _CudaKernel] = {}

    def get(self, name: str) -> Kernel:
        """Returns a kernel; compiled at first use, or read from CuPy's disk cache by whole source and options."""
        if name not in self._kernels:
            with self._cupy.cuda.Device(self.device.index or 0):
                module = self._cupy.RawModule(code=kernel_source(name), options=self._options)
                self._kernels[name] = _CudaKernel(module.get_function(name))
        return self._kernels[name]

    def warm_up(self) -> None:
        """Compiles (some 10 s at first, then from the disk cache) and loads every kernel: do it before serving."""
        for name in KERNELS:
            self.get(name)
        torch.cuda.synchronize(self.device)

    @contextmanager
    def stream(self, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
        """Sends launches to a stream of torch, the current one if None. Enter it once a step: it costs 10 µs."""
        chosen = stream or torch.cuda.current_stream(self.device)
        cuda = self._cupy.cuda
        known = hasattr(chosen, "__cuda_stream__")  # of older torch only the address can be passed
        with cuda.Stream.from_external(chosen) if known else cuda.ExternalStream(chosen.cuda_stream):
            yield


class _CudaKernel:
    def __init__(self, function: Any) -> None:
        self._function = function
        self._shared_bytes = 0

    def __call__(self, grid: int, threads: int, shared_bytes: int, arguments: Sequence[Argument]) -> None:
        if shared_bytes > max(self._shared_bytes, 48 << 10):
            self._function.max_dynamic_shared_size_bytes = shared_bytes
            self._shared_bytes = shared_bytes
        self._function((grid,), (threads,), tuple(map(as_number, arguments)), shared_mem=shared_bytes)


def as_number(argument: Argument) -> np.int32 | np.int64 | np.uint64:
    """Returns what is passed for an argument."""
    if argument is None:
        return np.uint64(0)
    return np.uint64(argument.data_ptr()) if isinstance(argument, torch.Tensor) else argument


def _cupy() -> Any:
    if not torch.cuda.is_available():
        raise PreconditionError("the kernels need an NVIDIA GPU, and torch finds none; the CPU path needs no kernels")
    try:
        import cupy
    except ImportError as error:
        raise PreconditionError(
            f"the kernels need CuPy, which cannot be imported ({error}): install deltaserve[cuda], or serve on the CPU"
        ) from error
    return cupy
