// Blocks of a cluster, through distributed shared memory; and a block alone. Each block has the
// whole state of its group in shared memory, twice: [2, chunks], and behind it two mbarriers.
#pragma once

#include "exchange.cuh"

namespace fastlstm {
namespace exchange {

// The two buffers, and the sum over one.
template <Fault kFault>
class SharedState {
 public:
  FASTLSTM_DEVICE SharedState(const Params& p, uint32_t* shared)
      : chunks_(p.chunks), state_(reinterpret_cast<Word4*>(shared)) {}
  FASTLSTM_DEVICE static int parity(int step) { return kFault == Fault::kOneBuffer ? 0 : step % 2; }
  FASTLSTM_DEVICE Word4* at(int step, int chunk) const {
    return state_ + parity(step) * chunks_ + chunk;
  }
  FASTLSTM_DEVICE Word4* end() const { return state_ + 2 * chunks_; }
  FASTLSTM_DEVICE uint32_t sum(int step, int first, int stride) const {
    const Word4* from = at(step, 0);
    return sum_chunks(first, stride, chunks_, [=](int chunk) { return from[chunk]; });
  }
  FASTLSTM_DEVICE uint32_t sum(int step) const {
    return sum(step, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
  }

 private:
  const int chunks_;
  Word4* const state_;
};

// That of device.cuh, for lanes that need not be together.
struct AnyLanes {
  FASTLSTM_DEVICE static void arrive() { cluster_arrive(); }
  FASTLSTM_DEVICE static void wait() { cluster_wait(); }
};

// Stores into all blocks of the cluster, and its barrier.
template <class Barrier, Fault kFault = Fault::kNone>
class ClusterBarrier {
 public:
  static constexpr bool kReduces = true;

  FASTLSTM_DEVICE ClusterBarrier(const Params& p, const Place&, uint32_t* shared)
      : state_(p, shared) {
    cluster_sync();
  }
  FASTLSTM_DEVICE int copies() const { return cluster_size(); }
  FASTLSTM_DEVICE void send(int step, int chunk, const Word4& v, const Share& mine) {
    for (int rank = mine.part; rank < cluster_size(); rank += mine.parts) {
      *cluster_shared(state_.at(step, chunk), rank) = v;
    }
  }
  FASTLSTM_DEVICE uint32_t receive(int step) {
    Barrier::arrive();
    if (kFault != Fault::kNoWait) Barrier::wait();
    const uint32_t sum = state_.sum(step);
    // Only so that the next arrival is a right one.
    if (kFault == Fault::kNoWait) Barrier::wait();
    return sum;
  }
  FASTLSTM_DEVICE void finish() { cluster_sync(); }

 private:
  SharedState<kFault> state_;
};

// As the kernels of layers wait.
struct MbarrierWait {
  FASTLSTM_DEVICE static void wait(uint64_t* barrier, int parity, int most_looks) {
    mbarrier_wait(barrier, parity, most_looks);
  }
};

// Stores that count on an mbarrier of the block they go to. A buffer needs no second mbarrier that
// says when it is free: who stores step s + 2 has all of step s + 1, which a block sends only after
// the barrier (block_carry) at which its threads had read step s.
template <Fault kFault = Fault::kNone, class Wait = MbarrierWait>
class ClusterAsync {
 public:
  static constexpr bool kReduces = true;

  FASTLSTM_DEVICE ClusterAsync(const Params& p, const Place&, uint32_t* shared)
      : p_(p), state_(p, shared), full_(reinterpret_cast<uint64_t*>(state_.end())) {
    if (threadIdx.x == 0) {
      mbarrier_init(full_, 1);
      mbarrier_init(full_ + 1, 1);
    }
    cluster_sync();
  }
  FASTLSTM_DEVICE int copies() const { return cluster_size(); }
  FASTLSTM_DEVICE void send(int step, int chunk, const Word4& v, const Share& mine) {
    for (int rank = mine.part; rank < cluster_size(); rank += mine.parts) {
      store_async_16(cluster_shared(state_.at(step, chunk), rank), v,
                     cluster_shared(full_ + step % 2, rank));
    }
  }
  FASTLSTM_DEVICE uint32_t receive(int step) {
    uint64_t* full = full_ + step % 2;
    if (threadIdx.x == 0) mbarrier_expect_tx(full, p_.chunks * 16);
    if (kFault != Fault::kNoWait) Wait::wait(full, step / 2 % 2, p_.most_looks);
    return state_.sum(step);
  }
  FASTLSTM_DEVICE void finish() { cluster_sync(); }

 private:
  const Params& p_;
  SharedState<kFault> state_;
  uint64_t* const full_;
};

// One block a group: its shared memory and one barrier a step. Every warp reads all of the state,
// as where each has some of the gates and no sum is split.
template <Fault kFault = Fault::kNone>
class OneBlock {
 public:
  static constexpr bool kReduces = false;

  FASTLSTM_DEVICE OneBlock(const Params& p, const Place&, uint32_t* shared) : state_(p, shared) {}
  FASTLSTM_DEVICE int copies() const { return 1; }
  FASTLSTM_DEVICE void send(int step, int chunk, const Word4& v, const Share&) {
    *state_.at(step, chunk) = v;
  }
  FASTLSTM_DEVICE uint32_t receive(int step) {
    if (kFault != Fault::kNoWait) sync_block();
    return state_.sum(step, lane(), 32);
  }
  FASTLSTM_DEVICE void finish() {}

 private:
  SharedState<kFault> state_;
};

}  // namespace exchange
}  // namespace fastlstm
