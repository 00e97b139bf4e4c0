"""Small unsigned codes packed into bytes, row by row.

Codes of b bits: every row is its own little-endian bit stream. Code k of a row takes bits k·b … (k+1)·b − 1, bit i of
the stream being bit i mod 8 of byte i // 8. Rows end on a byte boundary; the bits that pad them are zero.

Trits (codes 0, 1, 2): five to a byte, code k being the digit of 3^(k mod 5) of byte k // 5; the digits that pad a row
are zero, so no byte is above 242.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import Protocol

import torch

from deltaserve.errors import FormatError


class Packing(Protocol):
    """One way to pack codes."""

    @property
    def bits(self) -> float:
        """Bits of a code."""

    def row_bytes(self, columns: int) -> int:
        """Returns the bytes of one packed row."""

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Packs uint8 [N, K] into uint8 [N, row_bytes(K)]."""

    def unpack(self, packed: torch.Tensor, columns: int) -> torch.Tensor:
        """Unpacks what `pack` made, uint8 [N, columns]."""

    def check(self, owner: str, packed: torch.Tensor, columns: int) -> None:
        """Raises FormatError for bytes that `pack` does not make."""


@dataclass(frozen=True, slots=True)
class BitPacking:
    """Codes below 2^width as bit streams."""

    width: int

    @property
    def bits(self) -> float:
        """Bits of a code."""
        return float(self.width)

    def row_bytes(self, columns: int) -> int:
        """Returns the bytes of one packed row."""
        return packed_bytes(columns, self.width)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Packs uint8 [N, K]."""
        return pack(codes, self.width)

    def unpack(self, packed: torch.Tensor, columns: int) -> torch.Tensor:
        """Unpacks to uint8 [N, columns]."""
        return unpack(packed, self.width, columns)

    def check(self, owner: str, packed: torch.Tensor, columns: int) -> None:
        """Padding bits are zero."""
        if not padding_is_zero(packed, self.width, columns):
            raise FormatError(f"codec {owner}: bits after the last code of a row are set; expected zeros")


@dataclass(frozen=True, slots=True)
class TritPacking:
    """Codes 0, 1, 2, five to a byte."""

    bits: float = 1.6

    def row_bytes(self, columns: int) -> int:
        """Returns the bytes of one packed row."""
        return -(-columns // _TRITS)

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """Packs uint8 [N, K]."""
        rows, columns = codes.shape
        padded = torch.nn.functional.pad(codes, (0, -columns % _TRITS)).view(rows, -1, _TRITS)
        powers = torch.tensor([3**i for i in range(_TRITS)], dtype=torch.uint8, device=codes.device)
        return (padded * powers).sum(dim=-1, dtype=torch.uint8)

    def unpack(self, packed: torch.Tensor, columns: int) -> torch.Tensor:
        """Unpacks to uint8 [N, columns]."""
        digits = torch.stack([packed // 3**i % 3 for i in range(_TRITS)], dim=-1)
        return digits.view(packed.shape[0], -1)[:, :columns]

    def check(self, owner: str, packed: torch.Tensor, columns: int) -> None:
        """No byte is above 242, or in the last column above what its codes can make."""
        most = torch.full((packed.shape[1],), 3**_TRITS - 1, dtype=torch.uint8, device=packed.device)
        most[-1] = 3 ** (columns - _TRITS * (packed.shape[1] - 1)) - 1
        if bool((packed > most).any()):
            raise FormatError(f"codec {owner}: a byte is above what its ternary codes can make")


_TRITS = 5
BITS = {width: BitPacking(width) for width in (1, 2, 3, 4)}
TRITS = TritPacking()


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
