"""Planes of a packed tensor as streams, where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from deltaserve.delta.dtypes import as_bytes
from deltaserve.delta.lossless.stream import decode, encode, estimate
from deltaserve.errors import FormatError

MIN_GAIN = 50  # a stream must save 1/50 of the plane's bytes: below that the decoding is not worth it …
MIN_GAIN_BYTES = 16 << 10  # … and so many of them, because a stream, however small, takes the time of a block


def wrap(plane: torch.Tensor) -> torch.Tensor | None:
    """Returns a plane's stream, or None when it saves too little.

    Args:
        plane: contiguous, on the CPU, of any dtype and shape.

    Returns:
        uint8 [m] on the CPU; the same for the same bytes.
    """
    if plane.nbytes <= MIN_GAIN_BYTES:
        return None
    raw = np.frombuffer(as_bytes(plane), dtype=np.uint8)
    if not _pays(estimate(raw), raw.size):
        return None
    stream = encode(raw)
    return torch.from_numpy(stream) if _pays(stream.size, raw.size) else None


def unwrap(stream: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], owner: str) -> torch.Tensor:
    """Returns the plane that a stream was made of.

    Args:
        stream: uint8 [m] on the CPU.
        dtype: of the plane.
        shape: of the plane.
        owner: whose stream it is, for messages.

    Raises:
        FormatError: a malformed stream, or one of another size than dtype and shape call for.
    """
    size = prod(shape) * dtype.itemsize  # of Python's integers: torch's would overflow
    try:
        raw = decode(stream.numpy(), size)
    except FormatError as error:
        raise FormatError(f"{owner}: {error.message}") from error
    return torch.from_numpy(raw).view(dtype).reshape(tuple(shape))


def _pays(stored: int, size: int) -> bool:
    return size - stored >= max(size // MIN_GAIN, MIN_GAIN_BYTES)
