// Lossless streams → the bytes of planes; the format is in docs/delta-format.md. Launcher: deltaserve/ops/decode_lossless.py; reference:
// deltaserve.delta.lossless.decode, equal bit for bit.
//
// A warp decodes one block of the stream, a lane of the warp being a lane of the coder; a thread block's 8 warps share a table of 4,096
// slots in shared memory (frequency in bits 20-31, offset in the symbol 8-19, symbol 0-7). A step:
//
//   x ──mod 4096──▶ slot ──▶ symbol, x' ──< 2^15?──▶ ballot ──▶ lane's word = next + hungry lanes below it
#include "layout.cuh"

namespace {

constexpr u32 SLOTS = 4096;
constexpr u32 STATE_MIN = 1u << 15;

}  // namespace

// What one thread block does; deltaserve/ops/decode_lossless.py writes it. 64 bytes.
struct alignas(8) DecodeJob {
  const u8* table;   // packed frequencies; 0: the byte-plane is raw, `words` are its bytes
  const u32* ends;   // of all the stream's blocks
  const u32* states;
  const u16* words;  // of all the stream's blocks
  u8* out;           // byte s of the plane for byte-plane s
  u32 size;          // bytes of the byte-plane (at most 2^32 − 1)
  u32 first_block;   // of this thread block, among the byte-plane's
  u32 before;        // blocks of the byte-planes before it
  u16 block_log, stride;
  u8 first, last, width, spare[5];
};

namespace {

// frequencies[256] from bits of a packed table, then the table of slots.
DEVICE void build_table(const DecodeJob& job, u32* slots, u32* cumulated) {
  const int i = threadIdx.x;
  u32 own = 0;
  if (i >= job.first && i <= job.last) {
    const u32 bit = (u32)(i - job.first) * job.width;
    u32 v = 0;
    for (u32 b = 0; b < 3; ++b)
      if ((bit & 7) + job.width > 8 * b) v |= (u32)job.table[(bit >> 3) + b] << (8 * b);
    own = v >> (bit & 7) & ((1u << job.width) - 1);
  }
  cumulated[i] = own;
  sync_block();
  for (int by = 1; by < 256; by *= 2) {
    const u32 other = i >= by ? cumulated[i - by] : 0;
    sync_block();
    cumulated[i] += other;
    sync_block();
  }
  for (u32 slot = i; slot < SLOTS; slot += 256) {
    int symbol = 0;  // the first whose cumulated frequencies exceed the slot
    for (int half = 128; half; half /= 2)
      if (cumulated[symbol + half - 1] <= slot) symbol += half;
    const u32 begin = symbol ? cumulated[symbol - 1] : 0;
    slots[slot] = (cumulated[symbol] - begin) << 20 | (slot - begin) << 8 | (u32)symbol;
  }
  sync_block();
}

DEVICE void store_row(const DecodeJob& job, u32 at, u32 four) {
  if (job.stride == 1 && at + 4 <= job.size && ((u64)(job.out + at) & 3) == 0) {
    *(u32*)(job.out + at) = four;
    return;
  }
  for (u32 i = 0; i < 4; ++i)
    if (at + i < job.size) job.out[(u64)(at + i) * job.stride] = (u8)(four >> (8 * i));
}

DEVICE bool decode_block(const DecodeJob& job, u32 block, const u32* slots, int lane) {
  const u32 number = job.before + block;
  const u32 block_bytes = 1u << job.block_log, start = block << job.block_log;
  const u32 bytes = job.size - start < block_bytes ? job.size - start : block_bytes;
  u32 at = number ? job.ends[number - 1] : 0;
  const u32 end = job.ends[number];
  u32 x = job.states[(u64)number * 32 + lane];
  const u32 below = lanes_below_mask();
  bool good = at <= end && end - at <= block_bytes && x >= STATE_MIN && x >> 31 == 0;
  if (!ballot_warp(good)) return false;
  const u32 rows = (bytes + 127) / 128;
  for (u32 row = 0; row < rows; ++row) {
    u32 four = 0;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const u32 entry = slots[x & (SLOTS - 1)];
      four |= (entry & 255) << (8 * step);
      x = (x >> 12) * (entry >> 20) + (entry >> 8 & (SLOTS - 1));
      const bool hungry = x < STATE_MIN;
      const u32 who = ballot_warp(hungry);
      if (hungry) {  // a damaged block may ask for words beyond its end: it gets none, and fails below
        const u32 place = at + (u32)count_bits(who & below);
        x = x << 16 | (place < end ? job.words[place] : 0);
      }
      at += (u32)count_bits(who);
    }
    store_row(job, start + row * 128 + lane * 4, four);
  }
  good = good && at == end && x == STATE_MIN;
  return ballot_warp(!good) == 0;
}

}  // namespace

// jobs [gridDim.x]; failed: int32, set to 1 where a block does not end as it must (zero it before).
extern "C" __global__ void __launch_bounds__(256) decode_lossless(const DecodeJob* jobs, int* failed) {
  DYNAMIC_SHARED(memory);
  u32* slots = (u32*)memory;
  const DecodeJob job = jobs[blockIdx.x];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 block = job.first_block + warp;
  const u64 start = (u64)block << job.block_log;
  if (!job.table) {
    const u64 end = start + (1ull << job.block_log) < job.size ? start + (1ull << job.block_log) : job.size;
    for (u64 i = start + lane; i < end; i += 32) job.out[i * job.stride] = ((const u8*)job.words)[i];
    return;
  }
  build_table(job, slots, slots + SLOTS);
  if (start >= job.size) return;
  if (!decode_block(job, block, slots, lane) && lane == 0) *failed = 1;
}
