// Codewords of `vector8` … `vector24`: their table in shared memory, and chunks of them multiplied. Part of sbmm.cu.
//
// A lane looks a byte up and has what it feeds to the tensor cores for WIDTH / 4 steps, four columns each. So that lanes do not
// wait for one another's banks the table is there COPIES times, side by side, for the 8 lanes that read 16 bytes at once:
//
//            copy 0    copy 1          copy 7
//   word 0  │ 16 B   │ 16 B   │  …   │ 16 B   │     first 8 values of all codewords, WIDTH 8: all 32 banks, no two lanes in one;
//   word 1  │        │        │      │        │     then the next 8 of all, with half or a quarter of the copies,
//   …                                               so that any table is at most BOOK_BYTES
#pragma once
#include "rows.cuh"

namespace {

template <int WIDTH>
struct Book {
  static constexpr int PIECES = (WIDTH + 7) / 8;  // of eight values
  static constexpr int COPIES = PIECES == 1 ? 8 : PIECES == 2 ? 4 : 2;
  static constexpr int SHIFT = COPIES == 8 ? 7 : COPIES == 4 ? 6 : 5;  // a codeword's place from its number
  static constexpr int PIECE_BYTES = CODEWORDS << SHIFT;
  static_assert(PIECES * PIECE_BYTES <= BOOK_BYTES, "the table fits its place");

  // fp16 [256][WIDTH] → bf16, rounded, by all threads of the block.
  DEVICE void load(const u16* from, u8* to) {
    for (int i = threadIdx.x; i < PIECES * CODEWORDS * COPIES; i += THREADS) {
      const int piece = i / (CODEWORDS * COPIES), number = i / COPIES % CODEWORDS;
      u32 w[4] = {0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = piece * 8 + 2 * j;
        if (at >= WIDTH) break;
        const u32 two = *(const u32*)(from + number * WIDTH + at);
        w[j] = pack2(float_to_bf16(half_to_float((u16)two)), float_to_bf16(half_to_float((u16)(two >> 16))));
      }
      *(Vec4*)(to + i * 16) = Vec4{w[0], w[1], w[2], w[3]};
    }
  }

  // Eight values of the codeword whose number is byte `i` of w; `copy`: 16 times the lane's copy.
  DEVICE Vec4 values(const u8* book, u32 w, int i, int piece, u32 copy) {
    const u32 place = masked_or<(255u << SHIFT)>(shift_to(w, 8 * i, SHIFT), copy);
    return *(const Vec4*)(book + piece * PIECE_BYTES + place);
  }

  // The same eight columns of a row of x. Rows of 12 begin on eight bytes only.
  DEVICE Vec4 columns(const u8* x) {
    if (WIDTH % 8 == 0) return *(const Vec4*)x;
    const Vec2 low = *(const Vec2*)x, high = *(const Vec2*)(x + 8);
    return Vec4{low.x, low.y, high.x, high.y};
  }
};

// This warp's chunks first … first + count − 1 of an item, as `add_chunks` of sbmm.cu.
template <int WIDTH, int NT>
DEVICE void add_vectors(const Problem& p, int end, Producer& producer, int& taken, u8* ring, const u8* xs, const u8* book,
                        int stride, int rows, int first, int count, float (&sums)[2][NT][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const u32 copy = lane % Book<WIDTH>::COPIES * 16;
  const u8* mine[NT];
#pragma unroll
  for (int n = 0; n < NT; ++n) {  // lanes of absent rows repeat the last one: their sums are not used
    const int row = n * 8 + g;
    mine[n] = xs + (row < rows ? row : rows - 1) * stride + t * WIDTH * 2;
  }
  for (int chunk = warp; chunk < first + count; chunk += WARPS) {
    if (chunk < first) continue;
    wait_groups<STAGES - 1>();
    sync_warp();
    Vec4 w = *(const Vec4*)(ring + taken * SLOT_BYTES + lane * 16);
    sync_warp();
    Producer::fetch(producer, p, end, ring, taken, warp, lane);
    taken = next_slot(taken);
#pragma unroll 1  // what more steps at once would ask for ahead, there are no registers for
    for (int c = 0; c < 4; ++c) {
      const int offset = ((chunk - first) * CHUNK_WORDS + 4 * c) * WIDTH * 2;
#pragma unroll
      for (int piece = 0; piece < Book<WIDTH>::PIECES; ++piece) {
        const bool whole = piece * 8 + 8 <= WIDTH;
        Vec4 b[NT];
#pragma unroll
        for (int n = 0; n < NT; ++n) b[n] = Book<WIDTH>::columns(mine[n] + offset + piece * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const Vec4 low = Book<WIDTH>::values(book, w.x, 2 * m, piece, copy);
          const Vec4 high = Book<WIDTH>::values(book, w.x, 2 * m + 1, piece, copy);
          const u32 even[4] = {low.x, high.x, low.y, high.y}, odd[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            mma_bf16(sums[m][n], even, b[n].x, b[n].y);
            if (whole) mma_bf16(sums[m][n], odd, b[n].z, b[n].w);
          }
        }
      }
      w = Vec4{w.y, w.z, w.w, 0};
    }
  }
}

}  // namespace
