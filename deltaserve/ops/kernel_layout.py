"""Packed tensors in the layout that the kernels read (kernels/layout.cuh has the picture), and the repacking into it.

Repacking is exact. Codes keep their bits but for two codecs: trits (1.6 bits) become two bits each, and 2:4 sparse
codes become dense ones of the same width, the code of zero where nothing is kept; at two bits that is as many bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from deltaserve.delta.codecs import intn, lowrank, sign1, sparse24, vector
from deltaserve.delta.packed import PackedTensor
from deltaserve.delta.packing import BITS, TRITS
from deltaserve.errors import InvalidArgumentError
from deltaserve.ops.kernel_library import KernelLibrary
from deltaserve.ops.vector_units import CHUNK_WORDS, device_codebook, pack_codewords

BLOCK_N = 32
CHUNK_K = 128
UNIT_BYTES = 512
COLUMN_MULTIPLE = 16


class Storage(IntEnum):
    """How a plane holds codes: the enum Kind of kernels/repack.cu."""

    BIT_STREAM = 0
    TRITS = 1
    SPARSE24 = 2
    CODEWORD = 3


@dataclass(frozen=True, slots=True)
class CodeKind:
    """Codes of one codec.

    Attributes:
        bits: of a code in the kernels' layout; 1 of codewords: units of a chunk.
        storage: how the format holds them.
        width: bits of a code in the format's bit streams.
        zero2: twice the code that stands for zero.
        codeword: columns that a code stands for, 0 for codes of single weights.
    """

    bits: int
    storage: Storage
    width: int
    zero2: int
    codeword: int = 0


CODE_KINDS = {
    "sign1": CodeKind(1, Storage.BIT_STREAM, 1, 1),
    "ternary": CodeKind(2, Storage.TRITS, 2, 2),
    "int2": CodeKind(2, Storage.BIT_STREAM, 2, 3),
    "int3": CodeKind(3, Storage.BIT_STREAM, 3, 7),
    "int4": CodeKind(4, Storage.BIT_STREAM, 4, 15),
    "sparse24_int2": CodeKind(2, Storage.SPARSE24, 2, 4),
    "sparse24_int4": CodeKind(4, Storage.SPARSE24, 4, 16),
    **{codec.name: CodeKind(1, Storage.CODEWORD, 8, 0, codec.width) for codec in vector.VECTORS},
}
_FACTORS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
_PREFIX = "lowrank_"


@dataclass(frozen=True, slots=True)
class KernelTensor:
    """Δ̂ [N, K] as kernels read it: codes, low-rank factors, or both.

    Attributes:
        shape: N, K.
        bits: units of a chunk: bits of a code, 1 of codewords, 0 without codes.
        zero2: twice the code that stands for zero.
        group: columns that share a scale; 0: the whole row.
        codes: uint8 [⌈N/32⌉ · chunks · bits · 512], units.
        scales: fp16 [N], or [⌈N/32⌉, groups, 8, 4] for groups.
        column: fp16 [K].
        left: [r, N], the factor transposed; right: [r, K]; both fp16, bf16 or fp32.
        book: fp16 [256, columns of a codeword], shared by all tensors of the device.
    """

    shape: tuple[int, int]
    bits: int = 0
    zero2: int = 0
    group: int = 0
    codes: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    column: torch.Tensor | None = None
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    book: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Columns of the left factor."""
        return 0 if self.left is None else self.left.shape[0]

    @property
    def codeword(self) -> int:
        """Columns of a codeword, 0 for codes of single weights."""
        return 0 if self.book is None else self.book.shape[1]

    @property
    def chunks(self) -> int:
        """Chunks of a block: 128 columns each, or 16 codewords; 0 without codes."""
        return -(-self.shape[1] // (CHUNK_WORDS * self.codeword or CHUNK_K)) if self.bits else 0

    @property
    def factor(self) -> int:
        """Number of the factors' dtype in the kernels."""
        return 0 if self.left is None else _FACTORS[self.left.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes on the device, without the codebook, which is there once."""
        parts = (self.codes, self.scales, self.column, self.left, self.right)
        return sum(part.nbytes for part in parts if part is not None)


def runs_packed(packed: PackedTensor) -> bool:
    """Tells whether the kernels take a tensor; `dense`, `sparse_exact`, `tiered_…` and odd K are multiplied outside."""
    name = packed.entry.codec.removeprefix(_PREFIX)
    shape = packed.shape
    return (name in CODE_KINDS or name == "lowrank") and len(shape) == 2 and shape[1] % COLUMN_MULTIPLE == 0


def to_kernel_layout(packed: PackedTensor, kernels: KernelLibrary | None = None) -> KernelTensor:
    """Returns a tensor in the kernels' layout, on the device of its planes.

    Args:
        packed: of a codec and shape that `runs_packed`.
        kernels: repacks codes with them; None: with torch, which takes about 8 bytes a weight meanwhile.

    Raises:
        InvalidArgumentError: a tensor that the kernels do not take.
    """
    if not runs_packed(packed):
        raise InvalidArgumentError(
            f"tensor {packed.entry.name!r} of codec {packed.entry.codec}, shape {list(packed.shape)}: the kernels take "
            f"{', '.join(CODE_KINDS)}, lowrank and lowrank_… with a multiple of {COLUMN_MULTIPLE} columns; "
            f"multiply it densely"
        )
    shape = (packed.shape[0], packed.shape[1])
    planes = packed.planes
    left, right = planes.get(lowrank.LEFT), planes.get(lowrank.RIGHT)
    left, right = None if left is None else left.T.contiguous(), None if right is None else right.contiguous()
    kind = CODE_KINDS.get(packed.entry.codec.removeprefix(_PREFIX))
    if kind is None:
        return KernelTensor(shape, left=left, right=right)
    units = _torch_units(packed, kind) if kernels is None else _kernel_units(packed, kind, kernels)
    group = packed.entry.params.get(intn.GROUP_SIZE, 0)
    group = 0 if group >= shape[1] else group
    scales = planes[intn.SCALE].contiguous()
    return KernelTensor(
        shape,
        kind.bits,
        kind.zero2,
        group,
        units,
        group_scales(scales) if group else scales.reshape(-1),
        planes.get(sign1.COLUMN),
        left,
        right,
        device_codebook(kind.codeword, scales.device) if kind.codeword else None,
    )


def group_scales(scales: torch.Tensor) -> torch.Tensor:
    """Returns fp16 [N, G] as [⌈N/32⌉, G, 8, 4]: the last two are g and (m, r mod 2) of feature 16m + 8(r mod 2) + g."""
    rows, groups = scales.shape
    padded = torch.nn.functional.pad(scales, (0, 0, 0, -rows % BLOCK_N))
    return padded.view(-1, 4, 8, groups).permute(0, 3, 2, 1).contiguous()


def kernel_codes(packed: PackedTensor) -> torch.Tensor:
    """Returns the codes uint8 [N, K] that the kernels' layout holds, or the numbers of codewords [N, ⌈K/width⌉]."""
    kind = CODE_KINDS[packed.entry.codec.removeprefix(_PREFIX)]
    rows, columns = packed.shape
    if kind.storage == Storage.CODEWORD:
        return packed.planes[vector.CODES]
    if kind.storage == Storage.TRITS:
        return TRITS.unpack(packed.planes[intn.CODES], columns)
    if kind.storage == Storage.BIT_STREAM:
        return BITS[kind.width].unpack(packed.planes[_plane_name(kind)], columns)
    kept = columns // 2
    places = BITS[2].unpack(packed.planes[sparse24.INDEX], kept).long()
    places += torch.arange(kept, device=places.device) // 2 * 4
    codes = BITS[kind.width].unpack(packed.planes[sparse24.CODES], kept)
    return codes.new_full((rows, columns), kind.zero2 // 2).scatter_(1, places, codes)


def pack_units(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs codes uint8 [N, K] below 2^bits into units: the reference of kernels/repack.cu.

    Returns:
        uint8 [⌈N/32⌉ · ⌈K/128⌉ · bits · 512].
    """
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % CHUNK_K, 0, -rows % BLOCK_N))
    # feature = 16 m + 8 odd + g, column = 16 j + 4 t + 2 high + h
    parts = padded.view(-(-rows // BLOCK_N), 2, 2, 8, -(-columns // CHUNK_K), 8, 4, 2, 2)
    if bits == 3:
        words = torch.cat([_words(parts & 3, 2), _words(parts >> 2, 1, reverse=False)], dim=2)
    else:
        words = _words(parts, bits, reverse=bits == 1)
    blocks, chunks, count, lanes = words.shape
    units = words.view(blocks, chunks, count // 4, 4, lanes).transpose(3, 4)
    return units.to(torch.int32).contiguous().view(torch.uint8).reshape(-1)


def unpack_units(units: torch.Tensor, bits: int, rows: int, columns: int) -> torch.Tensor:
    """Returns the codes uint8 [rows, columns] that `pack_units` packed."""
    blocks, chunks = -(-rows // BLOCK_N), -(-columns // CHUNK_K)
    units = units.view(torch.int32).view(blocks, chunks, bits, 32, 4).transpose(3, 4)
    words = units.reshape(blocks, chunks, 4 * bits, 32).long() & 0xFFFFFFFF
    if bits == 3:
        parts = _parts(words[:, :, :8], 2) | _parts(words[:, :, 8:], 1, reverse=False) << 2
    else:
        parts = _parts(words, bits, reverse=bits == 1)
    return parts.reshape(blocks * BLOCK_N, chunks * CHUNK_K)[:rows, :columns].to(torch.uint8)


def _shifts(width: int, reverse: bool, device: torch.device) -> torch.Tensor:
    """Returns where a code lies in its word, int64 [step, odd, high, h]; signs take the registers' bits in reverse."""
    step, odd, high, half = torch.meshgrid(
        torch.arange(4 // width, device=device), *(torch.arange(2, device=device) for _ in range(3)), indexing="ij"
    )
    register = 3 - high - 2 * odd if reverse else odd + 2 * high
    return 16 * half + width * (4 * step + register)


def _words(parts: torch.Tensor, width: int, *, reverse: bool = False) -> torch.Tensor:
    """Returns words int64 [blocks, chunks, q, lane] of codes [blocks, m, odd, g, chunks, j, t, high, h]."""
    blocks, _, _, _, chunks = parts.shape[:5]
    steps = 4 // width
    split = parts.long().view(blocks, 2, 2, 8, chunks, 8 // steps, steps, 4, 2, 2)
    # [block, chunk, word j, m, g, t, step, odd, high, h]
    ordered = split.permute(0, 4, 5, 1, 3, 7, 6, 2, 8, 9)
    words = (ordered << _shifts(width, reverse, parts.device)).sum(dim=(6, 7, 8, 9))
    return words.reshape(blocks, chunks, 2 * (8 // steps), 32)


def _parts(words: torch.Tensor, width: int, *, reverse: bool = False) -> torch.Tensor:
    """Returns codes int64 [blocks, m, odd, g, chunks, j, t, high, h] of words: the inverse of `_words`."""
    blocks, chunks, count, _ = words.shape
    steps = 4 // width
    split = words.view(blocks, chunks, count // 2, 2, 8, 4, 1, 1, 1, 1)
    codes = (split >> _shifts(width, reverse, words.device)) & ((1 << width) - 1)
    ordered = codes.permute(0, 3, 7, 4, 1, 2, 6, 5, 8, 9)
    return ordered.reshape(blocks, 2, 2, 8, chunks, (count // 2) * steps, 4, 2, 2)


def _plane_name(kind: CodeKind) -> str:
    return sign1.SIGNS if kind.bits == 1 and not kind.codeword else intn.CODES


def _torch_units(packed: PackedTensor, kind: CodeKind) -> torch.Tensor:
    codes = kernel_codes(packed)
    return pack_codewords(codes) if kind.codeword else pack_units(codes, kind.bits)


def _kernel_units(packed: PackedTensor, kind: CodeKind, kernels: KernelLibrary) -> torch.Tensor:
    """Repacks on the device; the result is `_torch_units`'."""
    rows, columns = packed.shape
    plane = packed.planes[_plane_name(kind)].contiguous()
    index = packed.planes[sparse24.INDEX].contiguous() if kind.storage == Storage.SPARSE24 else None
    columns, chunk = (plane.shape[1], CHUNK_WORDS) if kind.codeword else (columns, CHUNK_K)
    size = -(-rows // BLOCK_N) * -(-columns // chunk) * kind.bits * UNIT_BYTES
    units = torch.empty(size, dtype=torch.uint8, device=plane.device)
    grid = min(-(-size // 4 // 256), 8 * kernels.multiprocessors)
    kernels.get("repack")(
        grid,
        256,
        0,
        (
            units,
            plane,
            np.int64(plane.shape[1]),
            index,
            np.int64(0 if index is None else index.shape[1]),
            np.int32(rows),
            np.int32(columns),
            np.int32(kind.storage),
            np.int32(kind.width),
            np.int32(kind.bits),
        ),
    )
    return units
