"""The emulated device finds what it is there to find."""

from __future__ import annotations

import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from deltaserve.ops.kernel_source import SOURCES
from tests.emulation.library import EmulatedKernel, EmulationError, compile_text

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: kernels cannot be emulated")

KERNELS = """
static void kernel(int what, int* data, int size) {
  DYNAMIC_SHARED(memory);
  int* shared = (int*)memory;
  const int i = threadIdx.x;
  if (what == 0) data[size + i] = i;                       // out of bounds
  if (what == 1 && i != 3) sync_block(), sync_warp();      // one lane stays away
  if (what == 2 || what == 3) {                            // hand over through shared memory
    shared[i] = i;
    if (what == 3) sync_block();
    data[i] = shared[(i + 32) % 64];
  }
  if (what == 4 || what == 5) {                            // read before the copy has come
    copy_async(memory + 16 * i, data + 4 * i);
    commit_group();
    if (what == 5) wait_groups<0>();
    data[4 * i] = shared[4 * i] + 1;
  }
  if (what == 6) data[0] = shared[(16 << 10) / 4];         // beyond shared memory
}
EMULATE(kernel)
"""


@pytest.fixture(scope="module")
def kernel() -> EmulatedKernel:
    source = (SOURCES / "ptx.cuh").read_text().replace("#pragma once", "")
    return EmulatedKernel(compile_text(str(shutil.which("g++")), source + KERNELS, "device"))


def launch(kernel: EmulatedKernel, what: int, data: torch.Tensor) -> None:
    kernel(1, 64, 16 << 10, (np.int32(what), data, np.int32(data.numel())))


def test_writes_beyond_the_end_fault(kernel: EmulatedKernel) -> None:
    page = mmap.PAGESIZE
    room = mmap.mmap(-1, 2 * page)
    data = torch.frombuffer(room, dtype=torch.int32, count=page // 4, offset=page)
    with pytest.raises(EmulationError, match="out of bounds"):
        launch(kernel, 0, data[-1:].expand(1 << 28)[: 1 << 28] if Path("/proc/self/maps").exists() else data)


def test_a_barrier_that_not_all_reach_is_a_deadlock(kernel: EmulatedKernel) -> None:
    with pytest.raises(EmulationError, match="deadlock"):
        launch(kernel, 1, torch.zeros(64, dtype=torch.int32))


def test_a_missing_barrier_shows_as_poison(kernel: EmulatedKernel) -> None:
    data = torch.zeros(64, dtype=torch.int32)
    launch(kernel, 3, data)
    assert torch.equal(data, (torch.arange(64) + 32) % 64)
    launch(kernel, 2, data)
    assert bool((data == -1).any())


def test_a_copy_that_nobody_waited_for_has_not_come(kernel: EmulatedKernel) -> None:
    data = torch.arange(256, dtype=torch.int32)
    launch(kernel, 5, data)
    assert torch.equal(data[::4], torch.arange(0, 256, 4) + 1)
    launch(kernel, 4, data)
    assert bool((data[::4] == 0).any())  # poison is −1


def test_reads_beyond_shared_memory_fault(kernel: EmulatedKernel) -> None:
    with pytest.raises(EmulationError, match="out of bounds"):
        launch(kernel, 6, torch.zeros(64, dtype=torch.int32))
