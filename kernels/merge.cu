// out = W_b + Δ̂ in bf16 from one packed part, for prefill and hot deltas. Launcher and reference: deltaserve/ops/merge_packed.py.
//
// A warp takes a chunk: 32 features × 128 columns. For a register pair (r, r + 2) of step j a lane holds four neighbouring columns
// of one feature: 8 bytes read of W_b and 8 written; the four lanes of a feature fill a sector of 32.
#include "layout.cuh"

namespace {

struct Target {
  u16* out;
  const u16* base;
  long long ldo, ldb;
  int columns, base_rows;
};

struct Four {
  float v[4];
};

// left · right of a feature at columns k … k + 3. Never inlined: it would be at every step of every unrolled loop.
NO_INLINE Four low_rank(const Part* part, int feature, int columns, int k) {
  Four sum{{0.f, 0.f, 0.f, 0.f}};
  for (int j = 0; j < part->rank; ++j) {
    const float left = factor_value(part->left, part->factor, (long long)j * part->n + feature);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sum.v[i] += left * factor_value(part->right, part->factor, (long long)j * columns + k + i);
  }
  return sum;
}

DEVICE float scale_of(const Part* part, int feature, int k) {
  const u16* scales = (const u16*)part->scales;
  if (!part->group) return half_to_float(scales[feature]);
  const int n = feature % BLOCK_N;  // [block][group][g][m, r & 1]
  const long long record = (long long)(feature / BLOCK_N) * part->groups + k / part->group;
  return half_to_float(scales[record * BLOCK_N + (n & 7) * 4 + n / 8]);
}

template <int BITS>
DEVICE float code_value(const u32* w, const Part* part, int m, int j, int r, int h, int k) {
  const u32 code = Codes<BITS>::code(w, m, j, r, h);
  if (BITS > 1) return 0.5f * (float)(2 * (int)code - part->zero2);
  const float sign = code ? 1.f : -1.f;
  return part->column ? sign * half_to_float(((const u16*)part->column)[k]) : sign;
}

// out = W_b + Δ of four columns, Δ being `delta` and the low-rank factors.
DEVICE void merge_four(const Target& to, const Part* part, int feature, int k, const Four& delta) {
  Vec2 old{0, 0};
  if (feature < to.base_rows) old = *(const Vec2*)(to.base + feature * to.ldb + k);
  Four low{{0.f, 0.f, 0.f, 0.f}};
  if (part->rank) low = low_rank(part, feature, to.columns, k);
  u16 merged[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32 two = i < 2 ? old.x : old.y;
    merged[i] = float_to_bf16(bf16_to_float((u16)(i & 1 ? two >> 16 : two)) + (delta.v[i] + low.v[i]));
  }
  *(Vec2*)(to.out + feature * to.ldo + k) = Vec2{pack2(merged[0], merged[1]), pack2(merged[2], merged[3])};
}

template <int BITS>
DEVICE void merge_chunk(const Target& to, const Part* part, int block, int chunk, int chunks) {
  const int lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  u32 w[BITS ? 4 * BITS : 4];
#pragma unroll
  for (int unit = 0; unit < BITS; ++unit) {
    const long long number = ((long long)block * chunks + chunk) * BITS + unit;
    const Vec4 v = load_once((const u8*)part->codes + number * UNIT_BYTES + lane * 16);
    w[4 * unit] = v.x, w[4 * unit + 1] = v.y, w[4 * unit + 2] = v.z, w[4 * unit + 3] = v.w;
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int feature = block * BLOCK_N + 16 * m + 8 * odd + g;
      if (feature >= part->n) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int k = chunk * CHUNK_K + 16 * j + 4 * t;
        if (k >= to.columns) break;
        const float scale = BITS ? scale_of(part, feature, k) : 0.f;
        Four delta{{0.f, 0.f, 0.f, 0.f}};
        if constexpr (BITS > 0) {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            delta.v[i] = code_value<BITS>(w, part, m, j, odd + 2 * (i >> 1), i & 1, k + i) * scale;
        }
        merge_four(to, part, feature, k, delta);
      }
    }
}

// A lane holds four codewords for each of four features; their fp16 values come through L1, so merged weights are exact.
DEVICE void merge_codewords(const Target& to, const Part* part, int block, int chunk, int chunks) {
  const int lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3, width = part->codeword;
  Vec4 w = load_once((const u8*)part->codes + ((long long)block * chunks + chunk) * UNIT_BYTES + lane * 16);
#pragma unroll 1
  for (int c = 0; c < 4; ++c) {
    const int first = (chunk * CHUNK_WORDS + 4 * c + t) * width;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      const int feature = block * BLOCK_N + 8 * i + g;
      if (feature >= part->n) break;
      const float scale = half_to_float(((const u16*)part->scales)[feature]);
      const u16* word = (const u16*)part->book + (w.x >> (8 * i) & 255) * width;
      for (int k = 0; k < width && first + k < to.columns; k += 4) {
        const Vec2 four = *(const Vec2*)(word + k);
        merge_four(to, part, feature, first + k,
                   Four{{half_to_float((u16)four.x) * scale, half_to_float((u16)(four.x >> 16)) * scale,
                         half_to_float((u16)four.y) * scale, half_to_float((u16)(four.y >> 16)) * scale}});
      }
    }
    w = Vec4{w.y, w.z, w.w, 0};
  }
}

}  // namespace

// out bf16 [n, ldo], base bf16 [base_rows, ldb]: rows that the base lacks count as zero; both on 8 bytes, strides multiples of 4.
extern "C" __global__ void __launch_bounds__(256)
    merge(u16* out, long long ldo, const u16* base, long long ldb, int base_rows, int columns, const Part* part) {
  const int chunks = part->bits ? part->chunks : (columns + CHUNK_K - 1) / CHUNK_K;
  const int warps = gridDim.x * (blockDim.x / 32);
  const Target to{out, base, ldo, ldb, columns, base_rows};
  const int items = (part->n + BLOCK_N - 1) / BLOCK_N * chunks;
  const int first = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (part->codeword) {  // apart, so that its registers are not the others'
    for (int item = first; item < items; item += warps)
      merge_codewords(to, part, item / chunks, item % chunks, chunks);
    return;
  }
  for (int item = first; item < items; item += warps) {
    const int block = item / chunks, chunk = item % chunks;
    switch (part->bits) {
      case 0: merge_chunk<0>(to, part, block, chunk, chunks); break;
      case 1: merge_chunk<1>(to, part, block, chunk, chunks); break;
      case 2: merge_chunk<2>(to, part, block, chunk, chunks); break;
      case 3: merge_chunk<3>(to, part, block, chunk, chunks); break;
      case 4: merge_chunk<4>(to, part, block, chunk, chunks); break;
    }
  }
}
