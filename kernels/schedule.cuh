// What a block of `sbmm` works on, in which order, and the rings through which packed units come. Part of sbmm.cu.
#pragma once
#include "layout.cuh"

#ifndef WARPS
#define WARPS 16  // of a block, 8 or 16; 16 / WARPS blocks share a multiprocessor
#endif
#ifndef STAGES
#define STAGES 6
#endif
#ifndef X_BYTES
#define X_BYTES 135168
#endif

namespace {

constexpr int THREADS = 32 * WARPS;
constexpr int SLOT_BYTES = UNIT_BYTES + 64;  // a unit, and 32 scales
constexpr int RED_STRIDE = 36;               // floats between rows of partial sums: no bank twice
constexpr int RING_BYTES = WARPS * STAGES * SLOT_BYTES;
constexpr int RED_BYTES = WARPS * TILE_ROWS * RED_STRIDE * 4;
constexpr int SUM_BYTES = TILE_ROWS * 16;     // of rows of x, and what is staged
constexpr int LINES = TILE_ROWS / WARPS;     // (item, row) pairs that a warp finishes of a run
constexpr int BOOK_BYTES = 32768;            // the end of the place for x, while there are codewords
static_assert(STAGES > 4, "a chunk of four units must fit with one to spare");

struct Problem {
  u16* y;
  const u16* x;
  const Part* table;
  const Tile* tiles;
  const int* order;
  const float* shrunk;
  long long ldy, ldx;
  int columns, parts, max_rank, tile_count;
};

// Place in the list of all items, which is ordered by tile, part and block and never written down.
struct Place {
  const Part* part;
  int tile, index, block;  // index: of the part in its slot
  int at;                  // cost of all items before

  DEVICE void settle(const Problem& p, Place& s) {  // to the next part that has blocks left
    while (s.tile < p.tile_count && s.block >= s.part->blocks) {
      s.block = 0;
      ++s.part;
      if (++s.index == p.parts) {
        s.index = 0;
        if (++s.tile < p.tile_count) s.part = p.table + (long long)p.tiles[s.tile].slot * p.parts;
      }
    }
  }

  DEVICE void advance(const Problem& p, Place& s, int items) {
    s.at += items * s.part->cost;
    s.block += items;
    settle(p, s);
  }
};

// Returns the first item at or after this block's share of the total cost, and where the share ends.
DEVICE Place first_place(const Problem& p, int lane, int& end) {
  constexpr int PER_LANE = MAX_TILES / 32;
  int cost[PER_LANE];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const int tile = lane * PER_LANE + i;
    cost[i] = tile < p.tile_count ? p.table[(long long)p.tiles[tile].slot * p.parts].slot_cost : 0;
    sum += cost[i];
  }
  int upto = sum;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const int other = shuffle_up(upto, by);
    if (lane >= by) upto += other;
  }
  const long long total = shuffle(upto, 31);
  const int begin = (int)(total * blockIdx.x / gridDim.x);
  end = (int)(total * (blockIdx.x + 1) / gridDim.x);
  int tile = -1, before = upto - sum, found = 0;
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    if (begin >= before && begin < before + cost[i]) tile = lane * PER_LANE + i, found = before;
    before += cost[i];
  }
  const u32 who = ballot_warp(tile >= 0);
  if (begin >= end || who == 0) {
    end = 0;
    return Place{p.table, p.tile_count, 0, 0, 0};
  }
  const int owner = count_bits((who & (0u - who)) - 1);
  tile = shuffle(tile, owner);
  found = shuffle(found, owner);
  Place s{p.table + (long long)p.tiles[tile].slot * p.parts, tile, 0, 0, found};
  Place::settle(p, s);
  while (s.tile < p.tile_count && s.at < begin) {
    const int skip = (begin - s.at + s.part->cost - 1) / s.part->cost, left = s.part->blocks - s.block;
    Place::advance(p, s, skip < left ? skip : left);
  }
  return s;
}

DEVICE int next_slot(int slot) { return slot == STAGES - 1 ? 0 : slot + 1; }

// Fills a warp's ring, units ahead of the warp's own arithmetic.
struct Producer {
  Place place;
  const u8* block;    // this lane's 16 bytes of the warp's first unit of the block
  const u8* address;  // … of the next unit
  const u8* scales;   // … of the 64 of the block's first group
  int chunk, chunks, unit, bits, group, groups, cost, blocks;

  DEVICE void open(Producer& s, const Problem& p, int end, int warp, int lane) {  // the place's first unit
    while (s.place.at < end && s.place.tile < p.tile_count && s.place.part->chunks <= warp)
      Place::advance(p, s.place, s.place.part->blocks - s.place.block);
    s.bits = 0;
    if (s.place.tile >= p.tile_count || s.place.at >= end) return;
    const Part* part = s.place.part;
    s.bits = part->bits;
    s.chunks = part->chunks;
    s.group = part->group % CHUNK_K ? 0 : part->group;
    s.groups = part->groups;
    s.cost = part->cost;
    s.blocks = part->blocks;
    s.chunk = warp;
    s.unit = 0;
    s.block = (const u8*)part->codes + ((long long)s.place.block * s.chunks + warp) * s.bits * UNIT_BYTES + lane * 16;
    s.scales = (const u8*)part->scales + (long long)s.place.block * part->groups * 64 + lane * 16;
    s.address = s.block;
  }

  DEVICE void next_block(Producer& s, const Problem& p, int end, int warp, int lane) {
    if (s.place.block + 1 < s.blocks && s.place.at + s.cost < end) {
      ++s.place.block;
      s.place.at += s.cost;
      s.chunk = warp;
      s.block += (long long)s.chunks * s.bits * UNIT_BYTES;
      s.scales += s.groups * 64;
      s.address = s.block;
    } else {
      Place::advance(p, s.place, 1);
      open(s, p, end, warp, lane);
    }
  }

  // The next unit goes into the slot that the warp has just read.
  DEVICE void fetch(Producer& s, const Problem& p, int end, u8* ring, int slot, int warp, int lane) {
    if (s.bits) {
      u8* target = ring + slot * SLOT_BYTES;
      copy_async(target + lane * 16, s.address);
      if (s.group && s.unit == 0 && lane < 4)
        copy_async(target + UNIT_BYTES + lane * 16, s.scales + (long long)(s.chunk * CHUNK_K / s.group) * 64);
      s.address += UNIT_BYTES;
      if (++s.unit == s.bits) {
        s.unit = 0;
        s.chunk += WARPS;
        s.address += (WARPS - 1) * s.bits * UNIT_BYTES;
        if (s.chunk >= s.chunks) next_block(s, p, end, warp, lane);
      }
    }
    commit_group();  // empty ones too: waiting counts groups
  }
};

}  // namespace
