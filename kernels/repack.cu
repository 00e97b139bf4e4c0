// Planes of the delta format → the kernels' layout, exact. Launcher and reference: deltaserve/ops/kernel_layout.py.
//
// A thread makes one 32-bit word of a unit out of 32 / BITS codes, wherever they are in the plane. Codes beyond N and K are 0.
#include "layout.cuh"

namespace {

enum Kind { BIT_STREAM = 0, TRITS = 1, SPARSE24 = 2, CODEWORD = 3 };

struct Planes {
  const u8 *codes, *index;
  int rows, columns, kind, width;  // width: bits of a stored code
  long long row_bytes, index_row_bytes;
};

DEVICE u32 stream_code(const u8* row, int number, int width) {
  const int bit = number * width, byte = bit >> 3, shift = bit & 7;
  u32 v = row[byte];
  if (shift + width > 8) v |= (u32)row[byte + 1] << 8;
  return v >> shift & ((1u << width) - 1);
}

DEVICE u32 code_at(const Planes& p, int n, int k) {
  if (n >= p.rows || k >= p.columns) return 0;
  const u8* row = p.codes + n * p.row_bytes;
  if (p.kind == CODEWORD) return row[k];
  if (p.kind == BIT_STREAM) return stream_code(row, k, p.width);
  if (p.kind == TRITS) {
    u32 v = row[k / 5];
    for (int i = k % 5; i; --i) v /= 3;
    return v % 3;
  }
  const u8* places = p.index + n * p.index_row_bytes;  // two kept of each four, in ascending order
  const int kept = k / 4 * 2;
  if (stream_code(places, kept, 2) == (u32)(k & 3)) return stream_code(row, kept, p.width);
  if (stream_code(places, kept + 1, 2) == (u32)(k & 3)) return stream_code(row, kept + 1, p.width);
  return 1u << (p.width - 1);  // the code of zero
}

// The word `q` of a lane, codes of BITS bits: step and register of its codes are those of Codes<BITS> in layout.cuh. `plane_shift`: which
// bits of the code, for the high bits of three.
template <int BITS, bool SIGN_ORDER>
DEVICE u32 make_word(const Planes& p, int block, int chunk, int lane, int q, int plane_shift) {
  constexpr int STEPS = 16 / (4 * BITS);  // steps in a word
  const int g = lane >> 2, t = lane & 3, m = q & 1;
  u32 word = 0;
  for (int s = 0; s < STEPS; ++s)
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h) {
        const int j = (q >> 1) * STEPS + s;
        const int n = block * BLOCK_N + 16 * m + 8 * (r & 1) + g;
        const int k = chunk * CHUNK_K + 16 * j + 4 * t + 2 * (r >> 1) + h;
        const int place = SIGN_ORDER ? 3 - (r >> 1) - 2 * (r & 1) : r;
        word |= (code_at(p, n, k) >> plane_shift & ((1u << BITS) - 1)) << (16 * h + BITS * (4 * s + place));
      }
  return word;
}

// Word c of a lane: codewords 4c + t of four features, whose numbers are 8 apart.
DEVICE u32 make_codewords(const Planes& p, int block, int chunk, int lane, int c) {
  const int g = lane >> 2, t = lane & 3;
  u32 word = 0;
  for (int i = 0; i < 4; ++i)
    word |= code_at(p, block * BLOCK_N + 8 * i + g, chunk * CHUNK_WORDS + 4 * c + t) << (8 * i);
  return word;
}

}  // namespace

// out: units for codes of `bits` bits; codes, index: planes [rows, row bytes] as stored; kind: see Kind; width: bits of a stored code
// (of trits of no meaning). columns: of codewords their number in a row.
extern "C" __global__ void __launch_bounds__(256)
    repack(u32* out, const u8* codes, long long row_bytes, const u8* index, long long index_row_bytes, int rows, int columns,
           int kind, int width, int bits) {
  const Planes p{codes, index, rows, columns, kind, width, row_bytes, index_row_bytes};
  const int per_chunk = kind == CODEWORD ? CHUNK_WORDS : CHUNK_K, chunks = (columns + per_chunk - 1) / per_chunk;
  const long long total = (long long)((rows + BLOCK_N - 1) / BLOCK_N) * chunks * bits * (UNIT_BYTES / 4);
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
    const int lane = (int)(i / 4 % 32), unit = (int)(i / 128 % bits), q = unit * 4 + (int)(i % 4);
    const long long record = i / 128 / bits;
    const int chunk = (int)(record % chunks), block = (int)(record / chunks);
    if (kind == CODEWORD)
      out[i] = make_codewords(p, block, chunk, lane, q);
    else if (bits == 1)
      out[i] = make_word<1, true>(p, block, chunk, lane, q, 0);
    else if (bits == 2)
      out[i] = make_word<2, false>(p, block, chunk, lane, q, 0);
    else if (bits == 4)
      out[i] = make_word<4, false>(p, block, chunk, lane, q, 0);
    else
      out[i] = unit < 2 ? make_word<2, false>(p, block, chunk, lane, q, 0)
                        : make_word<1, false>(p, block, chunk, lane, q - 8, 2);
  }
}
