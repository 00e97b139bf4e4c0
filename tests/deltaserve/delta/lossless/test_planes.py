"""Planes of every dtype as streams."""

from __future__ import annotations

import pytest
import torch

from deltaserve.delta.dtypes import TORCH_DTYPES
from deltaserve.delta.lossless import unwrap, wrap
from deltaserve.errors import FormatError


def random_plane(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 100, shape).to(dtype)


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_planes_of_every_dtype_come_back(name: str) -> None:
    dtype = TORCH_DTYPES[name]
    plane = random_plane(dtype, 1200, 137)
    stream = wrap(plane)
    assert stream is not None
    assert stream.dtype == torch.uint8
    assert stream.nbytes <= 0.98 * plane.nbytes
    found = unwrap(stream, dtype, plane.shape, "x")
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), plane.view(torch.uint8))


def test_nan_and_signed_zeros_come_back_bit_by_bit() -> None:
    plane = torch.randn(300, 100).bfloat16()
    plane[::3] = float("nan")
    plane[1::3, ::2] = -0.0
    stream = wrap(plane)
    assert stream is not None
    assert torch.equal(unwrap(stream, plane.dtype, plane.shape, "x").view(torch.int16), plane.view(torch.int16))


def test_planes_that_gain_too_little_stay_raw() -> None:
    assert wrap(torch.randint(0, 256, (256, 256), dtype=torch.uint8)) is None
    assert wrap(torch.zeros(16 << 10, dtype=torch.uint8)) is None
    assert wrap(torch.zeros(18 << 10, dtype=torch.uint8)) is not None
    assert wrap(torch.zeros(0, 4, dtype=torch.uint8)) is None
    slightly = torch.randint(0, 250, (2048, 2048), dtype=torch.uint8)  # 0.4 % less than random
    assert wrap(slightly) is None
    assert wrap(torch.randint(0, 200, (1024, 1024), dtype=torch.uint8)) is not None


def test_messages_name_the_plane() -> None:
    stream = wrap(torch.zeros(100, 100))
    assert stream is not None
    with pytest.raises(FormatError, match="the owner: lossless stream"):
        unwrap(stream[:-1], torch.float32, (100, 100), "the owner")
    with pytest.raises(FormatError, match="lossless stream"):
        unwrap(stream, torch.float32, (1 << 60, 1 << 60), "the owner")
