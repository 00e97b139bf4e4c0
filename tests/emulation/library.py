"""The kernels on the host: the same sources, compiled with g++ against device.h; the interface is CudaKernels'."""

from __future__ import annotations

import ctypes
import hashlib
import random
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from deltaserve.ops.kernel_library import Argument, as_number
from deltaserve.ops.kernel_source import kernel_source

HEADER = Path(__file__).with_name("device.h")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas")


class EmulationError(Exception):
    """A kernel did what would fail, hang or race on a GPU."""


class EmulatedKernels:
    """Few blocks instead of one for each multiprocessor, so that each takes several items and rings run across them."""

    def __init__(self, multiprocessors: int = 3, defines: Mapping[str, int] | None = None) -> None:
        self.device = torch.device("cpu")
        self.multiprocessors = multiprocessors
        self._defines = dict(defines or {})
        self._kernels: dict[str, EmulatedKernel] = {}

    def get(self, name: str) -> EmulatedKernel:
        if name not in self._kernels:
            self._kernels[name] = EmulatedKernel(compiled(name, self._defines))
        return self._kernels[name]


class EmulatedKernel:
    def __init__(self, library: Path) -> None:
        self._launch = ctypes.CDLL(str(library)).emulate
        self._launch.restype = ctypes.c_char_p

    def __call__(self, grid: int, threads: int, shared_bytes: int, arguments: Sequence[Argument]) -> None:
        numbers = [as_number(argument).reshape(1) for argument in arguments]
        values = (ctypes.c_void_p * len(numbers))(*(number.ctypes.data for number in numbers))
        seed = ctypes.c_uint(random.getrandbits(32))
        failed = self._launch(values, len(numbers), grid, threads, ctypes.c_size_t(shared_bytes), seed)
        if failed:
            raise EmulationError(failed.decode())


def compiled(name: str, defines: Mapping[str, int]) -> Path:
    """Returns the shared library of a kernel, compiled once for the same sources."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: kernels cannot be emulated, and are NOT tested here")
    macros = "".join(f"#define {macro} {value}\n" for macro, value in defines.items())
    return compile_text(compiler, f"{macros}{kernel_source(name)}\nEMULATE({name})\n", name)


def compile_text(compiler: str, text: str, name: str) -> Path:
    """Compiles what defines a kernel and EMULATEs it."""
    key = hashlib.sha256("\n".join([text, HEADER.read_text(), *FLAGS]).encode()).hexdigest()[:20]
    target = Path(tempfile.gettempdir()) / "deltaserve-emulation" / f"{name}-{key}.so"
    if not target.is_file():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            source, fresh = Path(folder, f"{name}.cpp"), Path(folder, f"{name}.so")
            source.write_text(text)
            command = [compiler, *FLAGS, "-include", str(HEADER), "-o", str(fresh), str(source)]
            subprocess.run(command, check=True)
            fresh.replace(target)
    return target
