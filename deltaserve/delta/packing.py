"""Small unsigned codes packed into bytes: every row is its own little-endian bit stream.

Code k of a row takes bits k·b … (k+1)·b − 1, bit i of the stream being bit i mod 8 of byte i // 8. Rows end on a byte
boundary; the bits that pad them are zero.
"""

from __future__ import annotations

from math import lcm

import torch


def packed_bytes(columns: int, bits: int) -> int:
    """Returns the bytes of one packed row."""
    return (columns * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs codes below 2^bits.

    Args:
        codes: uint8 [N, K].
        bits: 1 to 4.

    Returns:
        uint8 [N, packed_bytes(K, bits)].
    """
    rows, columns = codes.shape
    per_word, word_bytes, dtype = _words(bits)
    words = -(-columns // per_word)
    padded = torch.nn.functional.pad(codes, (0, words * per_word - columns)).view(rows, words, per_word)
    word = torch.zeros(rows, words, dtype=dtype, device=codes.device)
    for i in range(per_word):
        word |= padded[:, :, i].to(dtype) << (i * bits)
    shifts = torch.arange(0, 8 * word_bytes, 8, dtype=dtype, device=codes.device)
    split = ((word.unsqueeze(-1) >> shifts) & 0xFF).to(torch.uint8).view(rows, words * word_bytes)
    return split[:, : packed_bytes(columns, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Unpacks what `pack` made.

    Args:
        packed: uint8 [N, packed_bytes(columns, bits)].
        bits: 1 to 4.
        columns: K.

    Returns:
        uint8 [N, K].
    """
    rows = packed.shape[0]
    per_word, word_bytes, dtype = _words(bits)
    words = -(-columns // per_word)
    padded = torch.nn.functional.pad(packed, (0, words * word_bytes - packed.shape[1])).view(rows, words, word_bytes)
    word = padded[:, :, 0].to(dtype)
    for i in range(1, word_bytes):
        word = word | (padded[:, :, i].to(dtype) << (8 * i))
    shifts = torch.arange(0, per_word * bits, bits, dtype=dtype, device=packed.device)
    codes = (word.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).view(rows, words * per_word)[:, :columns]


def padding_is_zero(packed: torch.Tensor, bits: int, columns: int) -> bool:
    """Tells whether the bits after the last code of every row are zero."""
    used = columns * bits % 8
    return used == 0 or not bool((packed[:, -1] >> used).any())


def _words(bits: int) -> tuple[int, int, torch.dtype]:
    """Returns how many codes fill a whole number of bytes, how many bytes, and an integer type that holds them."""
    if not 1 <= bits <= 4:
        raise ValueError(f"codes of {bits} bits cannot be packed; expected 1 to 4")
    whole = lcm(8, bits)
    return whole // bits, whole // 8, torch.uint8 if whole == 8 else torch.int32
