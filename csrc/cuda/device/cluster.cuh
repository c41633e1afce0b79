// The part of cuda.cuh that needs sm_90: thread-block clusters and mbarriers.
#pragma once

namespace fastlstm {
namespace device {

// Whether the architecture that is compiled for has what follows.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#define FASTLSTM_SM90(...) __VA_ARGS__
#else
constexpr bool kHasClusters = false;
#define FASTLSTM_SM90(...) trap("clusters need sm_90")
#endif

// ---- clusters ----

FASTLSTM_DEVICE int cluster_size() {
  int size = 1;
  FASTLSTM_SM90(asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size)));
  return size;
}

// A barrier of all threads of the cluster in two halves: what was stored before any arrive is seen
// after every wait. Not the .aligned forms: those need all lanes of a warp to be together.
FASTLSTM_DEVICE void cluster_arrive() {
  FASTLSTM_SM90(asm volatile("barrier.cluster.arrive.release;" : : : "memory"));
}
FASTLSTM_DEVICE void cluster_wait() {
  FASTLSTM_SM90(asm volatile("barrier.cluster.wait.acquire;" : : : "memory"));
}
FASTLSTM_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// Where `shared`, an address in this block's shared memory, lies in that of block `rank`. Loads and
// stores through it work as through any pointer, after a cluster_sync at the start of the kernel
// (the other block may not have started before) and until its last thread has left.
template <class T>
FASTLSTM_DEVICE T* cluster_shared(T* shared, int rank) {
  T* remote = nullptr;
  FASTLSTM_SM90(
      asm("mapa.u64 %0, %1, %2;" : "=l"(remote) : "l"(shared), "r"(static_cast<unsigned>(rank))));
  return remote;
}

// ---- mbarriers in shared memory ----
// A phase is over when as many threads have arrived as init said and as many bytes have come as
// expect_tx announced. Phases have parity 0, 1, 0, ...

// One thread calls; a barrier (of the cluster, if others use it) has to follow.
FASTLSTM_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  FASTLSTM_SM90(asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n\tfence.mbarrier_init.release.cluster;" : : "r"(
          shared_address(barrier)),
      "r"(arrivals) : "memory"));
}
// Arrives, and adds bytes to those that must come in this phase.
FASTLSTM_DEVICE void mbarrier_expect_tx(uint64_t* barrier, int bytes) {
  FASTLSTM_SM90(asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(shared_address(barrier)),
      "r"(bytes) : "memory"));
}
// Whether the phase of that parity is over; mbarrier_wait repeats it. Asleep for a microsecond at
// most: without the limit, of the order of a step of a kernel, how long a look takes is up to the
// hardware, and no number of looks would bound a wait.
FASTLSTM_DEVICE bool mbarrier_try_wait(uint64_t* barrier, int parity) {
  uint32_t done = 0;
  FASTLSTM_SM90(
      asm volatile("{\n\t.reg .pred p;\n\t"
                   "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2, 1000;\n\t"
                   "selp.u32 %0, 1, 0, p;\n\t}" : "=r"(done) : "r"(shared_address(barrier)),
                   "r"(parity) : "memory"));
  return done != 0;
}

// Stores 16 bytes in another block's shared memory and then counts them on a barrier there; both
// addresses are from cluster_shared with the same rank.
FASTLSTM_DEVICE void store_async_16(void* remote_shared, Word4 v, uint64_t* remote_barrier) {
  FASTLSTM_SM90(asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" : : "r"(shared_address(remote_shared)),
      "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]),
      "r"(shared_address(remote_barrier)) : "memory"));
}

#undef FASTLSTM_SM90

}  // namespace device
}  // namespace fastlstm
