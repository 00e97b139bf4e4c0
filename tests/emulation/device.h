// A CUDA device small enough to test kernels on: the twin of kernels/ptx.cuh, and blocks whose threads are fibers.
//
// Blocks run one after another, in an order that the seed picks; so do the warps of a block. A thread runs until it waits for its warp or
// its block. A wait that is missing therefore shows as poison or stale data under some seed, and one that only some threads reach as
// a deadlock, which is reported. Shared memory is poison (0xff, NaN) at first and ends at a page that faults; copies of
// cp.async happen at once or not before they are waited for, as chance has it.
#pragma once
#define DELTASERVE_EMULATED

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>
#include <algorithm>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define __global__
#define __launch_bounds__(...)
#define DEVICE static inline
#define NO_INLINE static
#define DYNAMIC_SHARED(name) u8* name = emulation::block.shared

struct alignas(16) Vec4 {
  u32 x, y, z, w;
};
struct alignas(8) Vec2 {
  u32 x, y;
};
struct float2 {
  float x, y;
};
struct Dim3 {
  int x, y, z;
};

namespace emulation {

constexpr size_t STACK = 128 << 10;
constexpr int LANES = 32;

struct Copy {
  void* to;
  const void* from;
  u64 group;
};

struct Fiber {
  ucontext_t context;
  void* stack_pointer = nullptr;
  Dim3 thread{0, 0, 0};
  const u32* waits_for = nullptr;  // runnable when *waits_for differs from `seen`
  u32 seen = 0;
  bool done = true;
  std::deque<Copy> copies;
  u64 groups = 0;
};

union Operand {
  u32 bits[6];
  int value;
  float number;
};

struct Warp {
  int arrived = 0;
  u32 generation = 0;
  Operand operands[2][LANES];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int arrived = 0, alive = 0;
  u32 generation = 0;
  u8* shared = nullptr;
  Dim3 index{0, 0, 0}, grid{1, 1, 1}, size{1, 1, 1};
};

inline Block block;
inline std::mt19937 chance;
inline Fiber* current = nullptr;
inline ucontext_t scheduler;
inline sigjmp_buf fault;
inline std::string message;
inline void (*body)(void*) = nullptr;
inline void* body_arguments = nullptr;

#if defined(__x86_64__)
// Saves what a call must keep, and goes on with another stack: swapcontext without its system calls.
extern "C" void emulation_switch(void** from, void* to);
__asm__(
    ".text\n.weak emulation_switch\n.type emulation_switch,@function\nemulation_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
inline void* scheduler_stack = nullptr;
inline void resume(Fiber& f) { emulation_switch(&scheduler_stack, f.stack_pointer); }
inline void yield() { emulation_switch(&current->stack_pointer, scheduler_stack); }
#else
inline void resume(Fiber& f) { swapcontext(&scheduler, &f.context); }
inline void yield() { swapcontext(&current->context, &scheduler); }
#endif

inline void wait_for(const u32* generation, u32 seen) {
  current->waits_for = generation;
  current->seen = seen;
  yield();
}

inline Warp& warp() { return block.warps[(current - block.fibers.data()) / LANES]; }
inline int lane() { return (int)((current - block.fibers.data()) % LANES); }

// Gives this lane's operand and waits for the others'; returns all of them, which stay until the warp's next but one exchange.
inline const Operand* exchange(const Operand& mine) {
  Warp& w = warp();
  const u32 now = w.generation;
  w.operands[now & 1][lane()] = mine;
  if (++w.arrived == LANES) {
    w.arrived = 0;
    ++w.generation;
  } else {
    wait_for(&w.generation, now);
  }
  return w.operands[now & 1];
}

inline void leave_barrier_if_full() {
  if (block.arrived && block.arrived == block.alive) {
    block.arrived = 0;
    ++block.generation;
  }
}

inline void fiber_main() {
  body(body_arguments);
  current->done = true;
  --block.alive;
  leave_barrier_if_full();
  yield();
  abort();
}

inline void start_fiber(Fiber& f, u8* stack) {
  f.waits_for = nullptr;
  f.done = false;
  f.copies.clear();
  f.groups = 0;
#if defined(__x86_64__)
  void** top = (void**)(stack + STACK) - 1;
  *top = nullptr;  // keeps the stack aligned as after a call
  *--top = (void*)fiber_main;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.stack_pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack;
  f.context.uc_stack.ss_size = STACK;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
#endif
}

inline bool run_warp(int number) {
  bool any = false;
  for (bool again = true; again;) {
    again = false;
    for (int i = 0; i < LANES; ++i) {
      Fiber& f = block.fibers[number * LANES + i];
      if (f.done || (f.waits_for && *f.waits_for == f.seen)) continue;
      f.waits_for = nullptr;
      current = &f;
      resume(f);
      any = again = true;
    }
  }
  return any;
}

inline void run_block(std::vector<int>& order, std::mt19937& random, u8* stacks) {
  const int threads = (int)block.fibers.size();
  block.arrived = 0;
  block.alive = threads;
  for (Warp& w : block.warps) w = Warp();
  for (int i = 0; i < threads; ++i) {
    block.fibers[i].thread = Dim3{i, 0, 0};
    start_fiber(block.fibers[i], stacks + i * STACK);
  }
  while (block.alive) {
    std::shuffle(order.begin(), order.end(), random);
    bool any = false;
    for (int number : order) any = run_warp(number) || any;
    if (!any) {
      message = "deadlock: " + std::to_string(block.alive) + " threads of block " + std::to_string(block.index.x) +
                " wait for others that never come";
      siglongjmp(fault, 2);
    }
  }
}

inline void on_fault(int signal) { siglongjmp(fault, signal); }

struct Mapping {
  u8* base;
  size_t bytes;
  explicit Mapping(size_t size) : bytes(size) {
    base = (u8*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~Mapping() { munmap(base, bytes); }
};

inline void run_grid(int grid, int threads, size_t shared_bytes, unsigned seed, u8* stacks) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (shared_bytes + page - 1) / page * page;
  Mapping shared(room + page);
  mprotect(shared.base + room, page, PROT_NONE);
  block.fibers.resize(threads);
  block.warps.resize(threads / LANES);
  block.grid = Dim3{grid, 1, 1};
  block.size = Dim3{threads, 1, 1};
  block.shared = shared.base + room - (shared_bytes + 127) / 128 * 128;
  std::mt19937 random(seed);
  chance.seed(seed + 1);
  std::vector<int> blocks(grid), order(threads / LANES);
  for (int i = 0; i < grid; ++i) blocks[i] = i;
  for (int i = 0; i < threads / LANES; ++i) order[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (int index : blocks) {
    memset(shared.base, 0xff, room);
    block.index = Dim3{index, 0, 0};
    run_block(order, random, stacks);
  }
}

// Returns null, or what went wrong.
inline const char* launch(int grid, int threads, size_t shared_bytes, unsigned seed, void (*kernel)(void*), void* arguments) {
  body = kernel;
  body_arguments = arguments;
  struct sigaction handler = {}, old_segv, old_bus;
  handler.sa_handler = on_fault;
  handler.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &handler, &old_segv);
  sigaction(SIGBUS, &handler, &old_bus);
  Mapping stacks((size_t)threads * STACK);
  message.clear();
  const int what = sigsetjmp(fault, 1);
  if (what == 0) run_grid(grid, threads, shared_bytes, seed, stacks.base);
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  if (what == SIGSEGV || what == SIGBUS)
    message = "access out of bounds or misaligned, block " + std::to_string(block.index.x) + ", thread " +
              std::to_string(current->thread.x);
  return message.empty() ? nullptr : message.c_str();
}

template <class... A, size_t... I>
const char* call(void (*kernel)(A...), void** values, int grid, int threads, size_t shared_bytes, unsigned seed,
                 std::index_sequence<I...>) {
  struct Bound {
    void (*kernel)(A...);
    void** values;
  } bound{kernel, values};
  return launch(
      grid, threads, shared_bytes, seed,
      [](void* p) {
        Bound* b = (Bound*)p;
        b->kernel(*(A*)b->values[I]...);
      },
      &bound);
}

template <class... A>
const char* call(void (*kernel)(A...), void** values, int count, int grid, int threads, size_t shared_bytes, unsigned seed) {
  if (count != (int)sizeof...(A)) return "wrong number of arguments";
  return call(kernel, values, grid, threads, shared_bytes, seed, std::index_sequence_for<A...>());
}

}  // namespace emulation

#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::block.index)
#define gridDim (emulation::block.grid)
#define blockDim (emulation::block.size)
#define EMULATE(kernel)                                                                                              \
  extern "C" const char* emulate(void** values, int count, int grid, int threads, size_t shared_bytes, unsigned seed) { \
    return emulation::call(kernel, values, count, grid, threads, shared_bytes, seed);                                \
  }

DEVICE float bits_to_float(u32 bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
DEVICE u32 float_to_bits(float f) {
  u32 bits;
  memcpy(&bits, &f, 4);
  return bits;
}
DEVICE u16 float_to_bf16(float f) {
  const u32 bits = float_to_bits(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (u16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
DEVICE float emulated_bf16(u32 h) { return bits_to_float((h & 0xffffu) << 16); }
DEVICE float half_to_float(u16 h) {
  const u32 exponent = h >> 10 & 31, mantissa = h & 1023, sign = (u32)(h >> 15) << 31;
  if (exponent == 0) return (sign ? -1.f : 1.f) * (float)mantissa * 0x1p-24f;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
  return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
DEVICE u32 sub_bf16x2(u32 a, u32 b) {
  const u32 low = float_to_bf16(emulated_bf16(a) - emulated_bf16(b));
  return low | (u32)float_to_bf16(emulated_bf16(a >> 16) - emulated_bf16(b >> 16)) << 16;
}
template <u32 MASK>
DEVICE u32 masked_or(u32 v, u32 c) {
  return (v & MASK) | c;
}
template <u32 MASK>
DEVICE u32 masked_xor(u32 v, u32 c) {
  return (v & MASK) ^ c;
}
DEVICE u32 in_register(u32 c) { return c; }

DEVICE void sync_warp() { emulation::exchange(emulation::Operand{}); }
DEVICE void sync_block() {
  emulation::Block& b = emulation::block;
  const u32 now = b.generation;
  ++b.arrived;
  emulation::leave_barrier_if_full();
  if (b.generation == now) emulation::wait_for(&b.generation, now);
}
DEVICE int emulated_value(int v, int from) {
  emulation::Operand mine;
  mine.value = v;
  return emulation::exchange(mine)[from].value;
}
DEVICE int shuffle(int v, int lane) { return emulated_value(v, lane & 31); }
DEVICE int shuffle_up(int v, int by) {
  const int lane = emulation::lane();
  return emulated_value(v, lane < by ? lane : lane - by);
}
DEVICE float shuffle_xor(float v, int mask) {
  emulation::Operand mine;
  mine.number = v;
  return emulation::exchange(mine)[emulation::lane() ^ mask].number;
}
DEVICE u32 ballot_warp(bool p) {
  emulation::Operand mine;
  mine.value = p;
  const emulation::Operand* all = emulation::exchange(mine);
  u32 who = 0;
  for (int i = 0; i < emulation::LANES; ++i) who |= (u32)(all[i].value & 1) << i;
  return who;
}
DEVICE u32 lanes_below_mask() { return (1u << emulation::lane()) - 1; }
DEVICE int count_bits(u32 v) { return __builtin_popcount(v); }

DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  emulation::Operand mine;
  for (int i = 0; i < 4; ++i) mine.bits[i] = a[i];
  mine.bits[4] = b0;
  mine.bits[5] = b1;
  const emulation::Operand* all = emulation::exchange(mine);
  const int g = emulation::lane() >> 2, t = emulation::lane() & 3;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + (i & 1);
    float sum = d[i];
    for (int k = 0; k < 16; ++k) {  // A[row][k] is in lane 4g + (k % 8) / 2, register (k / 8) · 2 + row / 8
      const int who = (k % 8) / 2, high = 16 * (k & 1);
      const u32 left = all[4 * g + who].bits[(k / 8) * 2 + (i >> 1)] >> high;
      const u32 right = all[4 * column + who].bits[4 + k / 8] >> high;
      sum += emulated_bf16(left) * emulated_bf16(right);
    }
    d[i] = sum;
  }
}

DEVICE void copy_async(void* shared, const void* global) {
  if (((uintptr_t)shared | (uintptr_t)global) & 15) raise(SIGBUS);
  if (emulation::chance() & 1)
    memcpy(shared, global, 16);
  else
    emulation::current->copies.push_back({shared, global, emulation::current->groups});
}
DEVICE void commit_group() { ++emulation::current->groups; }
template <int PENDING>
DEVICE void wait_groups() {
  emulation::Fiber& f = *emulation::current;
  while (!f.copies.empty() && f.copies.front().group + PENDING < f.groups) {
    memcpy(f.copies.front().to, f.copies.front().from, 16);
    f.copies.pop_front();
  }
}
DEVICE Vec4 load_once(const void* p) { return *(const Vec4*)p; }
