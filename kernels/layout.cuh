// The layout of packed weights that the kernels read, and how codes become bf16 in registers. docs/adr/0006 says why;
// deltaserve/ops/kernel_layout.py is the reference, and keeps the same numbers.
//
// Features are cut into blocks of 32 and columns into chunks of 128. A chunk of a block is BITS units of 512 bytes, 16 for
// each lane of the warp that reads it:
//
//              chunk 0            chunk 1
//          ┌─────┬─────┐      ┌─────┬─────┐
//  block 0 │ u0  │ u1  │      │ u0  │ u1  │ …      (int2: two units)       unit: lane 0 │ lane 1 │ … │ lane 31, 16 B each
//          └─────┴─────┘      └─────┴─────┘
//
// Lane 4g + t holds what it feeds to mma m16n8k16: register r of step j (0 … 7) of m-tile m (0, 1), halves h = 0, 1, is
//   feature 16m + 8(r & 1) + g,   column 16j + 4t + 2(r >> 1) + h,
// so that a lane's x are four neighbouring columns for each step.
//
// Codewords (`vector8` … `vector24`): a byte for CODEWORD columns, a chunk is 16 of them, one unit whatever their width. Byte
// 2m + odd of word c of lane 4g + t: feature 16m + 8·odd + g, codeword 4c + t of the chunk; a fragment is four of its columns.
#pragma once
#include "ptx.cuh"

constexpr int BLOCK_N = 32;
constexpr int CHUNK_K = 128;
constexpr int UNIT_BYTES = 512;
constexpr int CODEWORDS = 256;
constexpr int CHUNK_WORDS = 16;  // codewords of a chunk
constexpr int MAX_TILES = 256;
constexpr int TILE_ROWS = 16;
constexpr int PLAN_HEADER = 4;  // int32: tiles, rows, 0, 0

// One part of one linear of one delta; deltaserve/ops/delta_table.py writes it. 112 bytes.
struct alignas(16) Part {
  u64 codes;    // units as above; 0 when bits is 0
  u64 scales;   // fp16: [N] per row; else [blocks][groups][g][m, r & 1]: a lane's four scales are neighbours
  u64 column;   // fp16 [K] or 0
  u64 book;     // fp16 [256][codeword] or 0
  u64 left;     // [rank][N], dtype `factor`; 0 when rank is 0
  u64 right;    // [rank][K]
  int bits;     // units of a chunk: 0 (no codes) to 4, 1 of codewords
  int zero2;    // twice the code that stands for zero; of no meaning for bits 1
  int group;    // columns that share a scale, a multiple of 16; 0: the whole row
  int groups;   // ⌈K / group⌉, 1 for whole rows
  int rank;     // of left · right, 0 for none
  int factor;   // 0 fp16, 1 bf16, 2 fp32
  int begin;    // first feature's place in a row of y
  int n;        // features
  int blocks;   // ⌈n / 32⌉, 0: no work
  int chunks;   // of a block, 0 without codes
  int codeword;   // columns of a codeword, 0: codes of single weights
  int cost;     // of one block, in units of signs
  int slot_cost;  // of all blocks of all parts of the slot: only in the slot's first part
  int spare[3];
};

// Rows of one delta: at most 16.
struct alignas(16) Tile {
  int slot, begin, rows, spare;
};

DEVICE u32 shift_to(u32 w, int from, int to) { return from < to ? w << (to - from) : w >> (from - to); }

// What kernels are compiled for: the bits of a code, or the columns of a codeword.
DEVICE int kind_of(const Part* part) { return part->codeword ? part->codeword : part->bits; }
constexpr int MAX_BITS = 4;

// One register of two bf16 per call; all arguments but `w` are compile-time constants after unrolling. Codewords have none of this.
template <int KIND>
struct Codes {
  static constexpr bool GROUPED = false;
};

// Bit classes by register, so that no arithmetic is needed but masks (rows g: registers 0, 2; rows g + 8: 1, 3):
//   r = 0: ±1   r = 2: {0, 2}   r = 1: {2^-64, 1}   r = 3: {2^-32, 1}.
// With s = ±1 the signs: rows g add up Σ s·x + X_hi, rows g + 8 (Σ s·x + X)/2, X being the sum of x over all columns and X_hi over
// those with bit 1 of their number set; `correct` takes that out. The small numbers are below fp32's precision.
template <>
struct Codes<1> {
  static constexpr bool GROUPED = false;
  struct Constants {
    u32 minus, tiny, small;
  };
  DEVICE Constants constants(int) {
    return Constants{in_register(0xbf80bf80u), in_register(0x1f801f80u), in_register(0x2f802f80u)};
  }
  DEVICE void fragment(u32 (&a)[4], const u32* w, int m, int j, const Constants& c) {
    const u32 v = w[m + 2 * (j >> 2)] << (12 - 4 * (j & 3));
    a[0] = masked_xor<0x80008000u>(v, c.minus);
    a[1] = masked_or<0x20002000u>(v, c.tiny);
    a[2] = v & 0x40004000u;
    a[3] = masked_or<0x10001000u>(v, c.small);
  }
  DEVICE u32 code(const u32* w, int m, int j, int r, int h) {
    return w[m + 2 * (j >> 2)] >> (16 * h + 4 * (j & 3) + 3 - (r >> 1) - 2 * (r & 1)) & 1;
  }
};

// Codes become the upper bits of a mantissa, 1 + c / 2^BITS; subtracting 1 + zero / 2^BITS is exact: (c − zero) / 2^BITS.
struct MantissaConstants {
  u32 one, zero;
};
DEVICE MantissaConstants mantissa_constants(int zero2, int bits) {
  const u16 h = (u16)(0x3f80 + (zero2 << (6 - bits)));
  return MantissaConstants{in_register(0x3f803f80u), pack2(h, h)};
}

template <>
struct Codes<2> {
  static constexpr bool GROUPED = true;
  using Constants = MantissaConstants;
  DEVICE Constants constants(int zero2) { return mantissa_constants(zero2, 2); }
  DEVICE void fragment(u32 (&a)[4], const u32* w, int m, int j, const Constants& c) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const u32 v = shift_to(w[m + 2 * (j >> 1)], 2 * (4 * (j & 1) + r), 5);
      a[r] = sub_bf16x2(masked_or<0x00600060u>(v, c.one), c.zero);
    }
  }
  DEVICE u32 code(const u32* w, int m, int j, int r, int h) {
    return w[m + 2 * (j >> 1)] >> (16 * h + 2 * (4 * (j & 1) + r)) & 3;
  }
};

// Two units of the codes' low two bits, then one of their high bits.
template <>
struct Codes<3> {
  static constexpr bool GROUPED = true;
  using Constants = MantissaConstants;
  DEVICE Constants constants(int zero2) { return mantissa_constants(zero2, 3); }
  DEVICE void fragment(u32 (&a)[4], const u32* w, int m, int j, const Constants& c) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const u32 low = shift_to(w[m + 2 * (j >> 1)], 2 * (4 * (j & 1) + r), 4);
      const u32 high = shift_to(w[8 + m + 2 * (j >> 2)], 4 * (j & 3) + r, 6);
      a[r] = sub_bf16x2(masked_or<0x00300030u>(low, masked_or<0x00400040u>(high, c.one)), c.zero);
    }
  }
  DEVICE u32 code(const u32* w, int m, int j, int r, int h) {
    const u32 high = w[8 + m + 2 * (j >> 2)] >> (16 * h + 4 * (j & 3) + r) & 1;
    return Codes<2>::code(w, m, j, r, h) | high << 2;
  }
};

template <>
struct Codes<4> {
  static constexpr bool GROUPED = true;
  using Constants = MantissaConstants;
  DEVICE Constants constants(int zero2) { return mantissa_constants(zero2, 4); }
  DEVICE void fragment(u32 (&a)[4], const u32* w, int m, int j, const Constants& c) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const u32 v = shift_to(w[m + 2 * j], 4 * r, 3);
      a[r] = sub_bf16x2(masked_or<0x00780078u>(v, c.one), c.zero);
    }
  }
  DEVICE u32 code(const u32* w, int m, int j, int r, int h) { return w[m + 2 * j] >> (16 * h + 4 * r) & 15; }
};

// Value i of a factor as it is stored.
DEVICE float factor_value(u64 base, int dtype, long long i) {
  if (dtype == 0) return half_to_float(((const u16*)base)[i]);
  if (dtype == 1) return bf16_to_float(((const u16*)base)[i]);
  return ((const float*)base)[i];
}
