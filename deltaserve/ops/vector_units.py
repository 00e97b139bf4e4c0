"""Codewords in the kernels' layout: bytes of `vector8` … `vector24` in units, and the codebooks on the device.

A chunk is 16 codewords of 32 features, one unit of 512 bytes, whatever a codeword's width is.
"""

from __future__ import annotations

import functools

import torch

from deltaserve.delta.codecs.vector import codebook

CHUNK_WORDS = 16
_BLOCK_N = 32  # kernels/layout.cuh


def pack_codewords(codes: torch.Tensor) -> torch.Tensor:
    """Packs numbers of codewords uint8 [N, W] into units: the reference of kernels/repack.cu.

    Returns:
        uint8 [⌈N/32⌉ · ⌈W/16⌉ · 512].
    """
    rows, words = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -words % CHUNK_WORDS, 0, -rows % _BLOCK_N))
    # feature = 8 i + g, codeword = 4 c + t
    parts = padded.view(-(-rows // _BLOCK_N), 4, 8, -(-words // CHUNK_WORDS), 4, 4)
    return parts.permute(0, 3, 2, 5, 4, 1).reshape(-1)


def unpack_codewords(units: torch.Tensor, rows: int, words: int) -> torch.Tensor:
    """Returns the numbers uint8 [rows, words] that `pack_codewords` packed."""
    blocks, chunks = -(-rows // _BLOCK_N), -(-words // CHUNK_WORDS)
    parts = units.view(blocks, chunks, 8, 4, 4, 4).permute(0, 5, 2, 1, 4, 3)
    return parts.reshape(blocks * _BLOCK_N, chunks * CHUNK_WORDS)[:rows, :words]


@functools.cache
def device_codebook(width: int, device: torch.device) -> torch.Tensor:
    """Returns the codewords, fp16 [256, width]; all tensors of a device share them."""
    return codebook(width).half().to(device)
