"""Token masks of grammars as a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_BYTES = 4  # of a word


def forbidden_tokens(masks: Sequence[bytes], vocab: int, device: torch.device) -> torch.Tensor:
    """Returns bool [R, vocab]: whether each token may not come next.

    Args:
        masks: R bit masks, lowest bit first, of the tokens that may; ids beyond a mask's end may not.
        vocab: number of token ids.
        device: where the result is; bits travel there packed, an eighth of a byte a token.
    """
    words = -(-vocab // (8 * _BYTES))
    packed = np.zeros((len(masks), words * _BYTES), np.uint8)
    for row, mask in enumerate(masks):
        size = min(len(mask), words * _BYTES)
        packed[row, :size] = np.frombuffer(mask, np.uint8, size)
    np.invert(packed, out=packed)
    if device.type == "cpu":
        bits = np.unpackbits(packed, axis=1, count=vocab, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))
    tensor = torch.from_numpy(packed.view(np.int32)).to(device)
    places = torch.arange(8 * _BYTES, dtype=torch.int32, device=device)
    return ((tensor[:, :, None] >> places) & 1).flatten(1)[:, :vocab].bool()
