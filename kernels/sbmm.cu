// Selective batched matmul on packed weights: y[row] += x[row] · Δ̂ᵀ of the row's own delta, all deltas of a step in one launch.
// Launcher and reference: deltaserve/ops/packed_sbmm.py. Design and estimates: docs/adr/0006.
//
// A persistent block of 16 warps takes a run of items, an item being 32 features of one part for one tile of at most 16 rows:
//
//      x tile (shared memory, bf16)              K = chunks of 128 columns, warp w takes w, w + 16, w + 32, …
//   row 0 ├────────┼────────┼── … ─┤            ┌────┬────┬────┬── … ──┬────┬────┐
//   …     │        │        │      │   32       │ w0 │ w1 │ w2 │       │ w15│ w0 │ …    packed units, each warp's through a ring of
//  row 15 ├────────┼────────┼── … ─┤   features └────┴────┴────┴── … ──┴────┴────┘      its own (cp.async, STAGES × 512 bytes)
//
//   every warp: 2 m-tiles × NT n-tiles of fp32 accumulators over its chunks; then 16 partial sums are added in order. There is room
//   for partial sums of 16 (item, row) pairs, so a run of 16 items of one row, … one of 16 rows is finished at once.
//
// Rings run on across items, so that memory never waits for the end of one. What is added in which order depends on K and codec
// alone, never on other rows or deltas of the batch: a request's results do not change with its neighbours.
#include "vectors.cuh"

namespace {

struct Shared {
  u8 *ring, *xs;
  float* red;
  float2* row_sums;
  Staged* staged;
};

template <int NT>
struct Sums {
  float of[2][NT][4];
  DEVICE void clear(Sums& s) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s.of[m][n][i] = 0.f;
  }
};

// total += scale · sums; sums = 0. `four`: fp16 scales of features g, g + 8, g + 16, g + 24.
template <int NT>
DEVICE void flush(Sums<NT>& total, Sums<NT>& sums, Vec2 four) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const u32 two = m ? four.y : four.x;
    const float low = half_to_float((u16)two), high = half_to_float((u16)(two >> 16));
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        total.of[m][n][i] += (i < 2 ? low : high) * sums.of[m][n][i];
        sums.of[m][n][i] = 0.f;
      }
  }
}

// This warp's chunks first … first + count − 1 of an item. FINE: groups that end within a chunk.
template <int BITS, int NT, bool FINE>
DEVICE void add_chunks(const Problem& p, int end, Producer& producer, int& taken, const Shared& shared, int stride,
                       int rows, int first, int count, const Part* part, int block, Sums<NT>& sums, Sums<NT>& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const typename Codes<BITS>::Constants constants = Codes<BITS>::constants(part->zero2);
  const int group = Codes<BITS>::GROUPED ? part->group : 0;
  const u8* scales = (const u8*)part->scales + (long long)block * part->groups * 64 + g * 8;
  const u8* mine[NT];
#pragma unroll
  for (int n = 0; n < NT; ++n) {  // lanes of absent rows repeat the last one: their sums are not used
    const int row = n * 8 + g;
    mine[n] = shared.xs + (row < rows ? row : rows - 1) * stride + t * 8;
  }
  for (int chunk = warp; chunk < first + count; chunk += WARPS) {
    if (chunk < first) continue;
    wait_groups<STAGES - BITS>();
    sync_warp();
    u32 w[4 * BITS];
    Vec2 four{0, 0};
    int slot = taken;
#pragma unroll
    for (int unit = 0; unit < BITS; ++unit) {
      const u8* source = shared.ring + slot * SLOT_BYTES;
      const Vec4 v = *(const Vec4*)(source + lane * 16);
      w[4 * unit] = v.x, w[4 * unit + 1] = v.y, w[4 * unit + 2] = v.z, w[4 * unit + 3] = v.w;
      if (Codes<BITS>::GROUPED && !FINE && unit == 0 && group) four = *(const Vec2*)(source + UNIT_BYTES + g * 8);
      slot = next_slot(slot);
    }
    sync_warp();
#pragma unroll
    for (int unit = 0; unit < BITS; ++unit) {
      Producer::fetch(producer, p, end, shared.ring, taken, warp, lane);
      taken = next_slot(taken);
    }
    const int offset = (chunk - first) * CHUNK_K * 2;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      Vec2 b[NT];
#pragma unroll
      for (int n = 0; n < NT; ++n) b[n] = *(const Vec2*)(mine[n] + offset + j * 32);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        u32 a[4];
        Codes<BITS>::fragment(a, w, m, j, constants);
#pragma unroll
        for (int n = 0; n < NT; ++n) mma_bf16(sums.of[m][n], a, b[n].x, b[n].y);
      }
      if constexpr (FINE) {
        const int k = chunk * CHUNK_K + 16 * j + 16;
        if (j == 7 || k % group == 0) {
          const int last = (k < p.columns ? k : p.columns) - 1;
          flush(total, sums, *(const Vec2*)(scales + (long long)(last / group) * 64));
        }
      }
    }
    if (Codes<BITS>::GROUPED && !FINE && group) flush(total, sums, four);
  }
}

// All of a run but the end: partial sums of each warp to shared memory.
template <int KIND, int NT>
DEVICE void add_run(const Problem& p, const Place& place, const Tile& tile, const Run& run, int end, Producer& producer,
                    int& taken, const Shared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const Part* part = place.part;
  const Staged& staged = *shared.staged;
  const RowLayout layout = row_layout(KIND > MAX_BITS ? KIND : 0);
  const bool whole = fits(part, tile);
  const int slice = whole ? part->chunks : slice_chunks(layout, tile.rows);
  const int stride = row_bytes(layout, slice);
  const bool known = whole && staged.tile == place.tile && staged.stride == stride && staged.column == part->column &&
                     (staged.sums || KIND != 1);
  const bool grouped = Codes<KIND>::GROUPED && part->group;
  u8* book = shared.xs + X_BYTES - BOOK_BYTES;
  if constexpr (KIND > MAX_BITS) {
    if (staged.book != part->book) Book<KIND>::load((const u16*)part->book, book);
    if (known && staged.book != part->book) sync_block();
  }
  RowSums row_sums = {};
  for (int item = 0; item < run.items; ++item) {
    Sums<NT> sums, total;
    Sums<NT>::clear(sums);
    Sums<NT>::clear(total);
    for (int first = 0; first < part->chunks; first += slice) {
      const int count = part->chunks - first < slice ? part->chunks - first : slice;
      if (!known && item == 0) {
        if (first) sync_block();
        const int columns = layout.chunk_columns;
        stage_rows(p, tile, (const u16*)part->column, first * columns, count * columns, shared.xs, stride);
        sync_block();
        if (KIND == 1) sum_rows(row_sums, tile, count * columns, shared.xs, stride, warp, lane);
      }
      if constexpr (KIND > MAX_BITS)
        add_vectors<KIND, NT>(p, end, producer, taken, shared.ring, shared.xs, book, stride, tile.rows, first, count, sums.of);
      else if (Codes<KIND>::GROUPED && part->group % CHUNK_K)
        add_chunks<KIND, NT, Codes<KIND>::GROUPED>(p, end, producer, taken, shared, stride, tile.rows, first, count, part,
                                                   place.block + item, sums, total);
      else
        add_chunks<KIND, NT, false>(p, end, producer, taken, shared, stride, tile.rows, first, count, part,
                                    place.block + item, sums, total);
    }
    if (item == 0) {
      sync_block();  // the sums of the run before have been read
      if (!known && KIND == 1) publish_sums(row_sums, tile, shared.row_sums, warp, lane);
    }
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = n * 8 + 2 * t + (i & 1);
        float* line = shared.red + (warp * TILE_ROWS + item * run.row_room + row) * RED_STRIDE + 8 * (i >> 1) + g;
        if (row < run.row_room) {
          line[0] = grouped ? total.of[0][n][i] : sums.of[0][n][i];
          line[16] = grouped ? total.of[1][n][i] : sums.of[1][n][i];
        }
      }
  }
  if (threadIdx.x == 0) {  // all have read it: they waited for one another at item 0
    const bool book_left = known || tile.rows * stride <= X_BYTES - BOOK_BYTES;
    *shared.staged = Staged{part->column, KIND > MAX_BITS ? part->book : (book_left ? staged.book : 0),
                            whole ? place.tile : -1, stride, known ? staged.sums : KIND == 1};
  }
  sync_block();
}

// What one thread finishes of a run: a feature of a row.
struct Output {
  int line, row, feature;
  bool mine;
  u16* y;
};

DEVICE Output output_of(const Problem& p, const Place& place, const Tile& tile, const Run& run, int line) {
  const int item = line / run.row_room;
  Output out;
  out.line = line;
  out.row = line - item * run.row_room;
  out.feature = (place.block + item) * BLOCK_N + threadIdx.x % 32;
  out.mine = item < run.items && out.row < tile.rows && out.feature < place.part->n;
  out.y = out.mine ? p.y + p.order[tile.begin + out.row] * p.ldy + place.part->begin + out.feature : p.y;
  return out;
}

// Σ of the codes' part.
DEVICE float add_warps(const Part* part, const Shared& shared, const Output& out, u16 stored_scale) {
  const int n = threadIdx.x % 32, warps = part->chunks < WARPS ? part->chunks : WARPS;
  const float scale = half_to_float(stored_scale);
  float sum = 0.f;
  for (int w = 0; w < warps; ++w) sum += shared.red[(w * TILE_ROWS + out.line) * RED_STRIDE + n];
  if (part->codeword) return sum * scale;
  if (part->bits > 1) return sum * (scale * (float)(1 << part->bits));
  const float2 x = shared.row_sums[out.row];
  return (n & 8 ? 2.f * sum - x.y : sum - x.x) * scale;
}

// What must come from far away to finish an output, asked for before the run so that it is there after it; as it is stored, since
// converting would wait for it.
struct Ahead {
  u16 old, scale;
};

DEVICE Ahead ask_ahead(const Part* part, const Output& out) {
  Ahead ahead{0, 0x3c00};  // 1 in fp16
  if (!out.mine) return ahead;
  ahead.old = *out.y;
  if (part->bits && !part->group) ahead.scale = ((const u16*)part->scales)[out.feature];
  return ahead;
}

DEVICE float times_left(const Problem& p, const Place& place, const Tile& tile, const Output& out) {
  const Part* part = place.part;
  const float* v = p.shrunk + ((long long)(tile.begin + out.row) * p.parts + place.index) * p.max_rank;
  float sum = 0.f;
  for (int j = 0; j < part->rank; ++j)
    sum += v[j] * factor_value(part->left, part->factor, (long long)j * part->n + out.feature);
  return sum;
}

}  // namespace

// y bf16 [·, ldy], x bf16 [·, ldx] with ldx a multiple of 8 and x on 16 bytes; plan: see deltaserve/ops/group_plan.py; table:
// Part [slots × parts]; shrunk fp32 [rows, parts, max_rank] of the kernel `shrink`, used by parts with a rank.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 16 / WARPS)
    sbmm(u16* y, long long ldy, const u16* x, long long ldx, int columns, const int* plan, int max_tiles, const Part* table,
         int parts, const float* shrunk, int max_rank) {
  DYNAMIC_SHARED(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Problem p{y,   x,   table,   (const Tile*)(plan + PLAN_HEADER),      plan + PLAN_HEADER + 4 * max_tiles, shrunk,
                  ldy, ldx, columns, parts, max_rank, plan[0]};
  u8* sums = memory + RING_BYTES + RED_BYTES;
  const Shared shared{memory + warp * STAGES * SLOT_BYTES, sums + SUM_BYTES, (float*)(memory + RING_BYTES), (float2*)sums,
                      (Staged*)(sums + TILE_ROWS * 8)};
  int end;
  Place place = first_place(p, lane, end);
  Producer producer{place, nullptr, nullptr, nullptr, 0, 0, 0, 0, 0, 0, 0, 0};
  Producer::open(producer, p, end, warp, lane);
  for (int i = 0; i < STAGES; ++i) Producer::fetch(producer, p, end, shared.ring, i, warp, lane);
  int taken = 0;
  if (threadIdx.x == 0) *shared.staged = Staged{0, 0, -1, 0, 0};
  sync_block();
  while (place.at < end && place.tile < p.tile_count) {
    const Tile tile = p.tiles[place.tile];
    const Run run = run_at(place, tile, end);
    Ahead ahead[LINES];
#pragma unroll
    for (int i = 0; i < LINES; ++i)
      ahead[i] = ask_ahead(place.part, output_of(p, place, tile, run, warp + i * WARPS));
    const int kind = kind_of(place.part);
    switch (kind * 2 + (tile.rows > 8)) {
      case 2: add_run<1, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 3: add_run<1, 2>(p, place, tile, run, end, producer, taken, shared); break;
      case 4: add_run<2, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 5: add_run<2, 2>(p, place, tile, run, end, producer, taken, shared); break;
      case 6: add_run<3, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 7: add_run<3, 2>(p, place, tile, run, end, producer, taken, shared); break;
      case 8: add_run<4, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 9: add_run<4, 2>(p, place, tile, run, end, producer, taken, shared); break;
      case 16: add_run<8, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 17: add_run<8, 2>(p, place, tile, run, end, producer, taken, shared); break;
      case 24: add_run<12, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 25: add_run<12, 2>(p, place, tile, run, end, producer, taken, shared); break;
      case 32: add_run<16, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 33: add_run<16, 2>(p, place, tile, run, end, producer, taken, shared); break;
      case 48: add_run<24, 1>(p, place, tile, run, end, producer, taken, shared); break;
      case 49: add_run<24, 2>(p, place, tile, run, end, producer, taken, shared); break;
      default: break;
    }
#pragma unroll
    for (int i = 0; i < LINES; ++i) {
      const Output out = output_of(p, place, tile, run, warp + i * WARPS);
      if (!out.mine) continue;
      float sum = place.part->bits ? add_warps(place.part, shared, out, ahead[i].scale) : 0.f;
      if (place.part->rank) sum += times_left(p, place, tile, out);
      *out.y = float_to_bf16(bf16_to_float(ahead[i].old) + sum);
    }
    Place::advance(p, place, run.items);
  }
}
