"""Gumbel noise as a pure function of (seed, position, token id): a draw depends on nothing else in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_GOLDEN = 0x9E3779B9  # 2³² / golden ratio
_MASK64 = (1 << 64) - 1


def gumbel(seeds: Sequence[int], positions: Sequence[int], vocab: int, device: torch.device) -> torch.Tensor:
    """Returns standard Gumbel noise [rows, vocab], float32: adding it to logits and taking the argmax samples softmax.

    Args:
        seeds: [rows] of 64 bits.
        positions: [rows] place of the drawn token in its sequence.
        vocab: number of token ids.
        device: where the noise is made.
    """
    keys = np.array([_splitmix(seed, position) for seed, position in zip(seeds, positions, strict=True)], np.uint64)
    halves = torch.from_numpy(keys.view(np.int32).reshape(-1, 2)).to(device)
    bits = torch.arange(vocab, dtype=torch.int32, device=device).mul_(_signed(_GOLDEN)) ^ halves[:, :1]
    bits = _mix(_mix(bits).add_(halves[:, 1:]))
    uniform = ((bits >> 9) & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)  # exact in float32, so never 0 or 1
    return uniform.log_().neg_().log_().neg_()


def _splitmix(seed: int, position: int) -> int:
    """Returns 64 well mixed bits of both arguments (the finaliser of SplitMix64, twice)."""
    value = seed & _MASK64
    for addend in (0x9E3779B97F4A7C15, position * 0xD1342543DE82EF95):
        value = (value + addend) & _MASK64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
        value ^= value >> 31
    return value


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """Scrambles int32 in place (lowbias32 by C. Wellons); shifts of signed integers are masked to be logical."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _signed(0x7FEB352D)
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _signed(0x846CA68B)
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value
