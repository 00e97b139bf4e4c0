"""Makes deltaserve/delta/codecs/codebooks.safetensors: codebooks for unit Gaussian vectors, by Lloyd's algorithm.

They are part of the delta format: made once, and never again under the same names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from deltaserve.delta.codecs.vector import CODEBOOKS, VECTORS

CODEWORDS = 256
SAMPLES = 1 << 19
ROUNDS = 40
WIDTHS = tuple(v.width for v in VECTORS)


def lloyd(width: int) -> tuple[torch.Tensor, float]:
    """Returns the codewords, fp16 [256, width], and the mean squared error that they leave of fresh vectors."""
    random = torch.Generator().manual_seed(width)
    vectors = torch.randn(SAMPLES, width, generator=random)
    words = vectors[:CODEWORDS].clone()
    for _ in range(ROUNDS):
        near = _nearest(vectors, words)
        count = torch.bincount(near, minlength=CODEWORDS).clamp_min(1).unsqueeze(1)
        words = torch.zeros_like(words).index_add_(0, near, vectors) / count
    words = words.half()
    fresh = torch.randn(SAMPLES, width, generator=random)
    left = fresh - words.float()[_nearest(fresh, words.float())]
    return words, float(left.square().mean())


def _nearest(vectors: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    half = words.square().sum(dim=1) / 2
    return torch.cat([(part @ words.T - half).argmax(dim=1) for part in vectors.split(1 << 14)])


if __name__ == "__main__":
    made = {}
    for dimension in WIDTHS:
        made[f"vector{dimension}"], error = lloyd(dimension)
        print(f"vector{dimension}: mean squared error {error:.4f} of unit Gaussian weights")
    save_file(made, Path(sys.argv[1]) if len(sys.argv) > 1 else CODEBOOKS)
