"""Kernels to test: emulated on the host everywhere, and on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from deltaserve.ops.kernel_library import CudaKernels, KernelLibrary
from tests.emulation.library import EmulatedKernels


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def libraries() -> dict[str, KernelLibrary]:
    return {}


BACKENDS = ["emulated", *(["cuda"] if torch.cuda.is_available() else [])]  # test_kernel_library tells of a missing GPU


@pytest.fixture(params=BACKENDS)
def kernels(request: pytest.FixtureRequest, libraries: dict[str, KernelLibrary]) -> Iterator[KernelLibrary]:
    if request.param == "emulated":
        yield libraries.setdefault("emulated", EmulatedKernels())
        return
    cuda = libraries.setdefault("cuda", CudaKernels())
    assert isinstance(cuda, CudaKernels)
    with cuda.stream():
        yield cuda
    torch.cuda.synchronize()
