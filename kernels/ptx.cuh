// Types, and the only inline PTX of the kernels. With DELTASERVE_EMULATED the same functions come from the host emulation
// (tests/emulation/device.h), so that everything but this file is one source for both.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef DELTASERVE_EMULATED

struct alignas(16) Vec4 {
  u32 x, y, z, w;
};
struct alignas(8) Vec2 {
  u32 x, y;
};

#define DEVICE static __device__ __forceinline__
#define NO_INLINE static __device__ __noinline__

// D[16 × 8] += A[16 × 16] · B[16 × 8], bf16 in, fp32 accumulators. Lane l = 4g + t holds
//   a0 = A[g][2t, 2t+1]  a1 = A[g+8][2t, 2t+1]  a2 = A[g][2t+8, 2t+9]  a3 = A[g+8][2t+8, 2t+9]
//   b0 = B[2t, 2t+1][g]  b1 = B[2t+8, 2t+9][g]  d0, d1 = D[g][2t, 2t+1]  d2, d3 = D[g+8][2t, 2t+1]
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Both halves: a − b in bf16.
DEVICE u32 sub_bf16x2(u32 a, u32 b) {
  u32 d;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// (v & MASK) | c in one instruction; the compiler makes two of it when it sees both constants.
template <u32 MASK>
DEVICE u32 masked_or(u32 v, u32 c) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(v), "n"(MASK), "r"(c));
  return d;
}

// (v & MASK) ^ c.
template <u32 MASK>
DEVICE u32 masked_xor(u32 v, u32 c) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(v), "n"(MASK), "r"(c));
  return d;
}

// A constant that the compiler keeps in a register.
DEVICE u32 in_register(u32 c) {
  u32 d;
  asm volatile("mov.b32 %0, %1;" : "=r"(d) : "r"(c));
  return d;
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

#ifndef L2_PREFETCH
#define L2_PREFETCH 128  // bytes that a copy brings to L2 at once
#endif
#if L2_PREFETCH == 256
#define L2_HINT ".L2::256B"
#elif L2_PREFETCH == 128
#define L2_HINT ".L2::128B"
#else
#define L2_HINT ""
#endif

// 16 bytes from global to shared memory, past L1; complete after wait_groups.
DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global" L2_HINT " [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void wait_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE float half_to_float(u16 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}

// Round to nearest even; NaN stays NaN.
DEVICE u16 float_to_bf16(float f) {
  u16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

// Each byte is read once: keep it out of L1.
DEVICE Vec4 load_once(const void* p) {
  Vec4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float f) { return __float_as_uint(f); }
DEVICE u32 lanes_below_mask() {
  u32 m;
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(m));
  return m;
}
DEVICE u32 ballot_warp(bool p) { return __ballot_sync(0xffffffffu, p); }
DEVICE int shuffle(int v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEVICE int shuffle_up(int v, int by) { return __shfl_up_sync(0xffffffffu, v, by); }
DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_block() { __syncthreads(); }
DEVICE int count_bits(u32 v) { return __popc(v); }

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) u8 name[]

#endif  // DELTASERVE_EMULATED

DEVICE float bf16_to_float(u16 h) { return bits_to_float((u32)h << 16); }
DEVICE u32 pack2(u16 low, u16 high) { return (u32)low | ((u32)high << 16); }
