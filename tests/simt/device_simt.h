// The emulator's half of csrc/cuda/device/device.cuh, which includes it and describes each
// function.
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

inline void trap(const char* why) { simt::fail("%s", why); }
template <class T>
T* shared_memory() {
  return static_cast<T*>(simt::shared_memory());
}
using simt::lane;
using simt::sync_block;
using simt::sync_warp;
using simt::warp;

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
using simt::mbarrier_expect_tx;
using simt::mbarrier_init;
using simt::mbarrier_try_wait;
inline void store_async_16(void* remote, Word4 value, uint64_t* remote_barrier) {
  simt::store_async(remote, &value, remote_barrier);
}

using simt::add_release;
inline unsigned load_acquire(const unsigned* address) {
  unsigned value;
  simt::load("load_acquire", address, &value, sizeof value);
  return value;
}
inline Word4 load_relaxed_16(const void* address) {
  Word4 value;
  simt::load("load_relaxed_16", address, &value, sizeof value);
  return value;
}
inline void store_relaxed_16(void* address, Word4 value) {
  simt::store_relaxed_16(address, &value);
}

}  // namespace device
}  // namespace fastlstm
