from pathlib import Path

import pytest
import torch

from services.compressor.pipeline.hidden import Hidden, Memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("limit", [0, 300, 1 << 20])
def test_what_is_read_is_what_was_written_last(tmp_path: Path, limit: int):
    hidden = Hidden(Memory(limit), tmp_path, CPU)
    first = [torch.randn(2, n, 8) for n in (3, 1, 4)]
    for i, states in enumerate(first):
        hidden[i] = states
    second = [states + 1 for states in first]
    for i in (2, 0, 1):
        hidden[i] = second[i]
    assert all(torch.equal(hidden[i], second[i]) for i in range(3))
    assert list(tmp_path.iterdir()) == []  # the file has no name, so that nothing is left behind


def test_clear_gives_memory_back(tmp_path: Path):
    memory = Memory(100)
    hidden = Hidden(memory, tmp_path, CPU)
    hidden[0] = torch.zeros(25)
    assert not memory.take(1)
    hidden.clear()
    assert memory.take(100)


def test_states_stay_on_the_device_while_it_has_room(tmp_path: Path):
    memory = Memory(0, 100)
    hidden = Hidden(memory, tmp_path, torch.device("meta"))
    for _ in range(2):  # written again in the same place
        hidden[0] = torch.zeros(25, device="meta")
    assert hidden[0].device.type == "meta"
    assert not memory.take_device(1)
    hidden.clear()
    assert not memory.take(1)
    assert memory.take_device(100)
