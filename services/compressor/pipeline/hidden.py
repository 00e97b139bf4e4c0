"""Hidden states between layers: in memory as far as a budget reaches, beyond it in files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from deltaserve.delta.dtypes import as_bytes
from deltaserve.errors import DataLossError


class Memory:
    """Bytes that hidden states may still take, shared by all of them: of the device, if it is a GPU, and of the host.

    What the device has room for stays there: a large model's states go through a layer's stages many times, and their
    way over the host would take longer than the layer.
    """

    def __init__(self, limit: int, device_limit: int = 0) -> None:
        """Takes the limits in bytes; without one for the device, all states lie on the host."""
        self._left, self._device_left = limit, device_limit

    def take(self, count: int) -> bool:
        """Takes `count` bytes of the host if there are as many left."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def take_device(self, count: int) -> bool:
        """Takes `count` bytes of the device if there are as many left."""
        if count > self._device_left:
            return False
        self._device_left -= count
        return True

    def give(self, states: torch.Tensor) -> None:
        """Gives the bytes of states back, to where they lay."""
        if states.device.type == "cpu":
            self._left += states.nbytes
        else:
            self._device_left += states.nbytes


class Hidden:
    """One float32 tensor for each batch; what is read back is exactly what was written.

    A file is read and written, not mapped: mapped pages would count as memory of the process.
    """

    def __init__(self, memory: Memory, folder: Path, device: torch.device) -> None:
        self._memory, self._folder, self._device = memory, folder, device
        self._held: dict[int, torch.Tensor] = {}
        self._places: dict[int, tuple[int, torch.Size]] = {}
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as the object
        self._end = 0

    def __setitem__(self, batch: int, states: torch.Tensor) -> None:
        states = states.float().contiguous()
        if batch in self._held:
            self._held[batch] = states.to(self._held[batch].device)
            return
        new = batch not in self._places
        if new and states.device.type != "cpu" and self._memory.take_device(states.nbytes):
            self._held[batch] = states
            return
        states = states.cpu()
        if new and self._memory.take(states.nbytes):
            self._held[batch] = states
            return
        if new:
            self._places[batch] = self._end, states.shape
            self._end += states.nbytes
        self._file.seek(self._places[batch][0])
        self._file.write(as_bytes(states))

    def __getitem__(self, batch: int) -> torch.Tensor:
        if batch in self._held:
            return self._held[batch].to(self._device)
        begin, shape = self._places[batch]
        states = torch.empty(shape)
        self._file.seek(begin)
        if self._file.readinto(as_bytes(states)) != states.nbytes:
            raise DataLossError(f"hidden states of batch {batch} were cut off; the disk of {self._folder} may be full")
        return states.to(self._device)

    def clear(self) -> None:
        """Forgets everything, and gives its memory and disk back."""
        for states in self._held.values():
            self._memory.give(states)
        self._held.clear()
        self._places.clear()
        self._file.truncate(0)
        self._end = 0
