from __future__ import annotations

import random

import pytest
import torch

from services.worker.engine.masks import forbidden_tokens


def mask_of(tokens: set[int], size: int) -> bytes:
    bits = bytearray(size)
    for token in tokens:
        bits[token // 8] |= 1 << token % 8
    return bytes(bits)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 96, 257, 1000])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bits_become_booleans(vocab: int, device: str):
    rows = [set(random.sample(range(vocab), random.randint(0, vocab))) for _ in range(5)]
    masks = [mask_of(tokens, -(-vocab // 32) * 4) for tokens in rows]
    forbidden = forbidden_tokens(masks, vocab, torch.device(device))
    assert (forbidden.shape, forbidden.dtype) == ((5, vocab), torch.bool)
    if device == "cpu":
        assert [set((~row).nonzero()[:, 0].tolist()) for row in forbidden] == rows


def test_longer_and_shorter_masks_fit():
    masks = [mask_of({0, 39, 70}, 12), mask_of({1}, 4)]
    forbidden = forbidden_tokens(masks, 40, torch.device("cpu"))
    assert [(~row).nonzero()[:, 0].tolist() for row in forbidden] == [[0, 39], [1]]
