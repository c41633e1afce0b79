// The CUDA half of device.cuh, which includes it: CUDA C++ and inline PTX. Instructions that an
// architecture does not have end the launch when they are called; host code does not choose
// kernels that need them there.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define FASTLSTM_KERNEL __global__
#define FASTLSTM_DEVICE __device__ __forceinline__
// Goes between the return type and the name of a kernel: threads a block, blocks a multiprocessor.
#define FASTLSTM_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)

namespace fastlstm {
namespace device {

// ---- threads of a block ----

// Ends the launch with an error. The words are for the emulator: printing would cost registers.
FASTLSTM_DEVICE void trap(const char*) { asm volatile("trap;"); }

// The dynamic shared memory of the block, aligned to 128 bytes.
template <class T>
FASTLSTM_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char fastlstm_shared_memory[];
  return reinterpret_cast<T*>(fastlstm_shared_memory);
}

FASTLSTM_DEVICE int lane() {
  int lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
FASTLSTM_DEVICE int warp() { return static_cast<int>(threadIdx.x / 32); }

FASTLSTM_DEVICE void sync_block() { __syncthreads(); }
// All lanes of the warp call, none of which has left.
FASTLSTM_DEVICE void sync_warp() { __syncwarp(); }

// ---- 16-bit conversions, for half.cuh ----

FASTLSTM_HOST_DEVICE uint16_t half_from_float(float value) {
  return static_cast<__half_raw>(__float2half_rn(value)).x;
}
FASTLSTM_HOST_DEVICE float half_to_float(uint16_t bits) {
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}
FASTLSTM_HOST_DEVICE uint16_t bfloat16_from_float(float value) {
  return static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(value)).x;
}
FASTLSTM_HOST_DEVICE float bfloat16_to_float(uint16_t bits) {
  __nv_bfloat16_raw raw;
  raw.x = bits;
  return __bfloat162float(__nv_bfloat16(raw));
}

// 1 / x, to an ulp.
FASTLSTM_DEVICE float reciprocal_approx(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// ---- tensor cores: all lanes of the warp call ----

template <class T>
struct MmaType;  // T: Half or BFloat16

#if __CUDA_ARCH__ >= 800
template <>
struct MmaType<Half> {
  FASTLSTM_DEVICE static void m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};
template <>
struct MmaType<BFloat16> {
  FASTLSTM_DEVICE static void m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};
#else
// sm_75 has half the depth: the first and the second half of k, one after the other.
template <>
struct MmaType<Half> {
  FASTLSTM_DEVICE static void m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
  FASTLSTM_DEVICE static void m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
    m16n8k8(d, a[0], a[1], b[0]);
    m16n8k8(d, a[2], a[3], b[1]);
  }
};
template <>
struct MmaType<BFloat16> {
  FASTLSTM_DEVICE static void m16n8k16(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {
    trap("mma of bfloat16 needs sm_80");
  }
};
#endif

// D[16, 8] += A[16, 16] B[16, 8] in float. With g = lane / 4 and p = lane % 4, a lane holds
//   a[0]: A[g][2p], A[g][2p+1]      a[1]: A[g+8][2p], [2p+1]    (the lower column in the low bits)
//   a[2]: A[g][2p+8], A[g][2p+9]    a[3]: A[g+8][2p+8], [2p+9]
//   b[0]: B[2p][g], B[2p+1][g]      b[1]: B[2p+8][g], B[2p+9][g]
//   d[0], d[1]: D[g][2p], D[g][2p+1]    d[2], d[3]: D[g+8][2p], D[g+8][2p+1]
template <class T>
FASTLSTM_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaType<T>::m16n8k16(d, a, b);
}

// D[16, 8] += A[16, 8] B[8, 8] of TF32 operands, which are floats whose low 13 bits do not count:
//   a[0]: A[g][p]   a[1]: A[g+8][p]   a[2]: A[g][p+4]   a[3]: A[g+8][p+4]
//   b[0]: B[p][g]   b[1]: B[p+4][g]   d as above
FASTLSTM_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  trap("mma of tf32 needs sm_80");
#endif
}

// Nearest TF32; ties away from zero.
FASTLSTM_DEVICE uint32_t to_tf32(float value) {
  uint32_t bits = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  trap("tf32 needs sm_80");
#endif
  return bits;
}

// ---- addresses as PTX has them ----

FASTLSTM_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
// A generic address would cost a generic load or store, which first asks what memory it is in.
FASTLSTM_DEVICE uint64_t global_address(const void* global) {
  return static_cast<uint64_t>(__cvta_generic_to_global(global));
}

// ---- asynchronous copies from global to shared memory ----

// 16 bytes between addresses aligned to 16, or zeros when not valid (global is then not read). The
// thread that copies sees them after cp_async_wait, others after a barrier that follows it.
FASTLSTM_DEVICE void cp_async_16(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global_address(global)), "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) =
      valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

// The same for 4 bytes, by way of L1: there is no other for less than 16.
FASTLSTM_DEVICE void cp_async_4(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(shared_address(shared)), "l"(global_address(global)), "r"(valid ? 4 : 0)
               : "memory");
#else
  *static_cast<uint32_t*>(shared) = valid ? *static_cast<const uint32_t*>(global) : 0;
#endif
}

// Makes a group of the thread's copies since the last commit.
FASTLSTM_DEVICE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

// Waits until at most kPending of the thread's groups, the latest, are under way.
template <int kPending>
FASTLSTM_DEVICE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
#endif
}

// ---- global memory shared between blocks: gpu scope; no shared memory ----

// 16 bytes at an address aligned to 16. Each of the words is whole; the four need not be of the
// same store.
FASTLSTM_DEVICE Word4 load_relaxed_16(const void* address) {
  Word4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(global_address(address))
               : "memory");
  return v;
}
FASTLSTM_DEVICE void store_relaxed_16(void* address, Word4 v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(global_address(address)), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
               : "memory");
}

// Adds, after everything the thread stored before.
FASTLSTM_DEVICE void add_release(unsigned* address, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;"
               :
               : "l"(global_address(address)), "r"(value)
               : "memory");
}

// What the thread loads after it is no older than the add_release that it sees.
FASTLSTM_DEVICE unsigned load_acquire(const unsigned* address) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(global_address(address))
               : "memory");
  return value;
}

}  // namespace device
}  // namespace fastlstm

#include "cluster.cuh"
#include "launch.cuh"
