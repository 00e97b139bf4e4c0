// v[row][part][j] = Σ_k x[row][k] · right[j][k] in fp32, for all parts with low-rank factors; `sbmm` then adds left · v.
// Its own launch, because every block of `sbmm` needs all of K. Launcher and reference: deltaserve/ops/shrink.py.
//
// A warp takes one (tile, part, j), 256 columns at a time, lane l columns 8l … 8l + 7:
//
//   right[j]  │ lane 0 │ lane 1 │ … │ lane 31 │ lane 0 │ …        x[row] likewise, four rows of the tile at a time
#include "layout.cuh"

namespace {

constexpr int ROWS_AT_ONCE = 4;

DEVICE void load8(float (&out)[8], u64 base, int dtype, long long i) {
  if (dtype == 2) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Vec4 v = *(const Vec4*)((const float*)base + i + 4 * h);
      out[4 * h] = bits_to_float(v.x), out[4 * h + 1] = bits_to_float(v.y);
      out[4 * h + 2] = bits_to_float(v.z), out[4 * h + 3] = bits_to_float(v.w);
    }
    return;
  }
  const Vec4 v = *(const Vec4*)((const u16*)base + i);
  const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int h = 0; h < 8; ++h) {
    const u16 bits = (u16)(w[h / 2] >> (16 * (h % 2)));
    out[h] = dtype == 0 ? half_to_float(bits) : bf16_to_float(bits);
  }
}

}  // namespace

// Arguments as of `sbmm`; v: fp32 [rows of the plan, parts, max_rank], written where a part has a rank.
extern "C" __global__ void __launch_bounds__(256)
    shrink(float* v, const u16* x, long long ldx, int columns, const int* plan, int max_tiles, const Part* table, int parts,
           int max_rank) {
  const Tile* tiles = (const Tile*)(plan + PLAN_HEADER);
  const int* order = plan + PLAN_HEADER + 4 * max_tiles;
  const int lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
  const int total = plan[0] * parts * max_rank;
  for (int item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; item < total; item += warps) {
    const int j = item % max_rank, index = item / max_rank % parts;
    const Tile tile = tiles[item / max_rank / parts];
    const Part* part = table + (long long)tile.slot * parts + index;
    if (j >= part->rank) continue;
    for (int row = 0; row < tile.rows; row += ROWS_AT_ONCE) {
      float sums[ROWS_AT_ONCE] = {0.f, 0.f, 0.f, 0.f};
      for (int k = 8 * lane; k < columns; k += 256) {
        float r[8];
        load8(r, part->right, part->factor, (long long)j * columns + k);
#pragma unroll
        for (int i = 0; i < ROWS_AT_ONCE; ++i) {
          if (row + i >= tile.rows) break;
          float values[8];
          load8(values, (u64)x, 1, order[tile.begin + row + i] * ldx + k);
#pragma unroll
          for (int h = 0; h < 8; ++h) sums[i] += r[h] * values[h];
        }
      }
#pragma unroll
      for (int i = 0; i < ROWS_AT_ONCE; ++i) {
        float sum = sums[i];
#pragma unroll
        for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
        if (lane == 0 && row + i < tile.rows)
          v[((long long)(tile.begin + row + i) * parts + index) * max_rank + j] = sum;
      }
    }
  }
}
