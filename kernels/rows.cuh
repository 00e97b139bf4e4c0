// Rows of x in shared memory, how many items they serve, and their sums for `sign1`. Part of sbmm.cu.
#pragma once
#include "schedule.cuh"

namespace {

// What of x lies in shared memory, and whose codewords. Lies there too: there are no registers for it.
struct Staged {
  u64 column, book;
  int tile, stride, sums;
};
static_assert(sizeof(Staged) <= SUM_BYTES - TILE_ROWS * 8, "there is room behind the sums");

// How rows of x lie for a kind of codes: their chunks, and the bytes after each row, so that the lanes that read at once (8 of 16
// bytes, 16 of 8) fall into different banks.
struct RowLayout {
  int chunk_columns, pad, room;
};
DEVICE RowLayout row_layout(int codeword) {
  if (codeword == 0) return RowLayout{CHUNK_K, 32, X_BYTES};
  return RowLayout{CHUNK_WORDS * codeword, codeword == 12 ? 32 : codeword == 16 ? 16 : 64, X_BYTES - BOOK_BYTES};
}
static_assert(X_BYTES - BOOK_BYTES >= TILE_ROWS * (CHUNK_WORDS * 24 * 2 + 64), "a slice is at least a chunk");

DEVICE int row_bytes(const RowLayout& layout, int chunks) { return chunks * layout.chunk_columns * 2 + layout.pad; }

// Chunks of a slice of rows that do not fit whole; as many for each warp if there are enough.
DEVICE int slice_chunks(const RowLayout& layout, int rows) {
  const int chunks = (layout.room / rows - layout.pad) / (layout.chunk_columns * 2);
  return chunks < WARPS ? chunks : chunks / WARPS * WARPS;
}

// Consecutive items of one part and tile that are finished together.
struct Run {
  int items, row_room;  // row_room: 1, 2, 4, 8 or 16, at least the tile's rows
};

DEVICE bool fits(const Part* part, const Tile& tile) {
  const RowLayout layout = row_layout(part->codeword);
  return tile.rows * row_bytes(layout, part->chunks) <= layout.room;
}

DEVICE Run run_at(const Place& place, const Tile& tile, int end) {
  Run run{1, 1};
  while (run.row_room < tile.rows) run.row_room *= 2;
  if (!fits(place.part, tile)) return run;
  const int room = TILE_ROWS / run.row_room, left = place.part->blocks - place.block;
  const int share = (end - place.at + place.part->cost - 1) / place.part->cost;
  run.items = room < left ? room : left;
  run.items = run.items < share ? run.items : share;
  return run;
}

// Copies rows of a tile, columns begin … begin + count − 1, times the part's column scales; zeros beyond K.
DEVICE void stage_rows(const Problem& p, const Tile& tile, const u16* column, int begin, int count, u8* xs, int stride) {
  const int pieces = count / 8;
  for (int i = threadIdx.x; i < pieces * tile.rows; i += THREADS) {
    const int row = i / pieces, k = (i - row * pieces) * 8 + begin;
    Vec4 v{0, 0, 0, 0};
    if (k < p.columns) {
      v = *(const Vec4*)(p.x + p.order[tile.begin + row] * p.ldx + k);
      if (column) {
        u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float low = bf16_to_float((u16)w[j]) * half_to_float(column[k + 2 * j]);
          const float high = bf16_to_float((u16)(w[j] >> 16)) * half_to_float(column[k + 2 * j + 1]);
          w[j] = pack2(float_to_bf16(low), float_to_bf16(high));
        }
        v = Vec4{w[0], w[1], w[2], w[3]};
      }
    }
    *(Vec4*)(xs + row * stride + (k - begin) * 2) = v;
  }
}

// X_hi and X of the rows w, w + WARPS, … of warp w: this lane's share.
struct RowSums {
  float high[LINES], all[LINES];
};

// Lanes take neighbouring columns, in ascending order whatever the slices are.
DEVICE void sum_rows(RowSums& sums, const Tile& tile, int count, const u8* xs, int stride, int warp, int lane) {
#pragma unroll
  for (int i = 0; i < LINES; ++i) {
    const int row = warp + i * WARPS;
    if (row >= tile.rows) break;
    for (int k = 4 * lane; k < count; k += CHUNK_K) {
      const Vec2 v = *(const Vec2*)(xs + row * stride + k * 2);
      const float high = bf16_to_float((u16)v.y) + bf16_to_float((u16)(v.y >> 16));
      sums.high[i] += high;
      sums.all[i] += high + (bf16_to_float((u16)v.x) + bf16_to_float((u16)(v.x >> 16)));
    }
  }
}

DEVICE void publish_sums(RowSums& sums, const Tile& tile, float2* to, int warp, int lane) {
#pragma unroll
  for (int i = 0; i < LINES; ++i) {
    const int row = warp + i * WARPS;
    if (row >= tile.rows) break;
#pragma unroll
    for (int mask = 16; mask; mask /= 2) {
      sums.high[i] += shuffle_xor(sums.high[i], mask);
      sums.all[i] += shuffle_xor(sums.all[i], mask);
    }
    if (lane == 0) to[row] = float2{sums.high[i], sums.all[i]};
  }
}

}  // namespace
