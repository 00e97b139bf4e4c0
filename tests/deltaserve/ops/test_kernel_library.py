"""Compiling for a GPU, and saying so when there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deltaserve.errors import PreconditionError
from deltaserve.ops.kernel_library import CudaKernels


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_clear_error() -> None:
    with pytest.raises(PreconditionError, match="CPU path"):
        CudaKernels()


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: kernels are compiled with nvcc and run emulated, NOT run for real"
)
def test_warming_up_compiles_everything() -> None:
    CudaKernels().warm_up()


def test_importing_the_operations_brings_no_cupy() -> None:
    modules = "packed_sbmm, merge_packed, decode_lossless, kernel_layout"
    code = f"import sys; from deltaserve.ops import {modules}; print('cupy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
