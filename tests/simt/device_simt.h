// The emulator's half of csrc/cuda/device.cuh, which includes it and describes each function.
#pragma once

#include <math.h>
#include <string.h>

#include <typeinfo>

#include "simt.h"

namespace fastlstm {
namespace device {

template <class P>
void launch_as(bool cooperative, int cluster_size, void (*kernel)(P), dim3 grid, dim3 block,
               size_t shared_bytes, const P& params) {
  static_assert(sizeof(P) <= 4096, "parameters of a kernel");
  const auto call = [](const void* kernel, const void* params) {
    reinterpret_cast<void (*)(P)>(reinterpret_cast<uintptr_t>(kernel))(
        *static_cast<const P*>(params));
  };
  simt::run({reinterpret_cast<const void*>(kernel), call, &params, typeid(P).name(), grid, block,
             shared_bytes, cooperative, cluster_size});
}
template <class P>
void launch(void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            const typename Identity<P>::type& params) {
  launch_as(false, 1, kernel, grid, block, shared_bytes, params);
}
template <class P>
void launch_cooperative(void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                        const typename Identity<P>::type& params) {
  launch_as(true, 1, kernel, grid, block, shared_bytes, params);
}
template <class P>
void launch_cluster(void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                    const typename Identity<P>::type& params, int cluster_size) {
  launch_as(false, cluster_size, kernel, grid, block, shared_bytes, params);
}

template <class P>
int compiled_architecture(void (*)(P)) {
  return 90;
}
template <class P>
int max_active_clusters(void (*)(P), int cluster_size, int threads, size_t shared_bytes) {
  return simt::max_active_clusters(cluster_size, threads, shared_bytes);
}
template <class P>
int max_active_blocks(void (*)(P), int threads, size_t shared_bytes) {
  return simt::max_active_blocks(threads, shared_bytes);
}

inline void trap(const char* why) { simt::fail("%s", why); }
template <class T>
T* shared_memory() {
  return static_cast<T*>(simt::shared_memory());
}
using simt::lane;
using simt::sync_block;
using simt::warp;
inline void sync_warp(unsigned mask = 0xffffffffu) { simt::sync_warp(mask); }

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
template <class T>
T shuffle_from(const char* what, unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a scalar of 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = simt::shuffle(what, mask, bits, source);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T shuffle(unsigned mask, T value, int source) {
  return shuffle_from("shuffle", mask, value, source);
}
template <class T>
T shuffle_xor(unsigned mask, T value, int lane_mask) {
  return shuffle_from("shuffle_xor", mask, value, lane() ^ lane_mask);
}
template <class T>
T shuffle_down(unsigned mask, T value, unsigned delta) {
  const unsigned source = lane() + delta;
  return shuffle_from("shuffle_down", mask, value, source < 32 ? static_cast<int>(source) : lane());
}
template <class T>
T shuffle_up(unsigned mask, T value, unsigned delta) {
  const int source = lane() - static_cast<int>(delta);
  return shuffle_from("shuffle_up", mask, value, source >= 0 ? source : lane());
}
using simt::ballot;

using simt::bfloat16_from_float;
using simt::bfloat16_to_float;
using simt::half_from_float;
using simt::half_to_float;
using simt::to_tf32;
// An ulp off.
inline float reciprocal_approx(float x) { return ::nextafterf(1 / x, 0); }

template <class T>
struct MmaType;
template <>
struct MmaType<Half> {
  static constexpr auto to_float = simt::half_to_float;
};
template <>
struct MmaType<BFloat16> {
  static constexpr auto to_float = simt::bfloat16_to_float;
};
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma_m16n8k16(d, a, b, MmaType<T>::to_float);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma_m16n8k8_tf32(d, a, b);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { simt::ldmatrix_x4(r, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  simt::ldmatrix_x4(r, row, true);
}

inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  simt::cp_async("cp_async_16", shared, global, 16, valid);
}
inline void cp_async_4(void* shared, const void* global, bool valid = true) {
  simt::cp_async("cp_async_4", shared, global, 4, valid);
}
using simt::cp_async_commit;
template <int kPending>
void cp_async_wait() {
  simt::cp_async_wait(kPending);
}

constexpr bool kHasClusters = true;
using simt::cluster_arrive;
using simt::cluster_rank;
using simt::cluster_size;
using simt::cluster_wait;
inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
template <class T>
T* cluster_shared(T* shared, int rank) {
  return static_cast<T*>(simt::cluster_shared(shared, rank));
}
using simt::mbarrier_init;
using simt::mbarrier_try_wait;
inline void mbarrier_arrive(uint64_t* barrier) { simt::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_remote(uint64_t* barrier) { simt::mbarrier_arrive(barrier, 0); }
inline void mbarrier_expect_tx(uint64_t* barrier, int bytes) {
  simt::mbarrier_arrive(barrier, bytes);
}
inline void store_async_16(void* remote, Word4 value, uint64_t* remote_barrier) {
  simt::store_async(remote, &value, remote_barrier);
}

template <class T>
T load_relaxed(const T* address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "load_relaxed");
  T value;
  simt::load("load_relaxed", address, &value, sizeof value);
  return value;
}
template <class T>
T load_acquire(const T* address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "load_acquire");
  T value;
  simt::load("load_acquire", address, &value, sizeof value);
  return value;
}
template <class T>
void store_relaxed(T* address, typename Identity<T>::type value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "store_relaxed");
  simt::store_relaxed(address, &value, sizeof value);
}
template <class T>
void store_release(T* address, typename Identity<T>::type value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "store_release");
  simt::store_release(address, &value, sizeof value);
}
inline Word4 load_relaxed_16(const void* address) {
  Word4 value;
  simt::load("load_relaxed_16", address, &value, sizeof value);
  return value;
}
inline void store_relaxed_16(void* address, Word4 value) {
  simt::store_relaxed(address, &value, sizeof value);
}
using simt::add_release;
using simt::fence;

}  // namespace device
}  // namespace fastlstm
