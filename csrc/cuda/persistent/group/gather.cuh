// How the blocks of a group come to have h of all units: each sends its own after every step.
//
// An exchange has
//   start()                          before the first step, by all threads
//   rows(s)                          where h that enters step s is, once received
//   receive(s)                       waits for it, s > 0
//   send(s, row, chunk, words, part, parts)   16 bytes of what enters step s; the parts are threads
//                                    that share the work of sending the same chunk
#pragma once

#include "group.h"
#include "matrix.cuh"

namespace fastlstm {
namespace cuda {

// Which block this is, and of what.
struct GroupPlace {
  int group, member;
  FASTLSTM_DEVICE explicit GroupPlace(const GroupPlan& plan)
      : group(static_cast<int>(blockIdx.x) / plan.blocks),
        member(static_cast<int>(blockIdx.x) % plan.blocks) {}
};

// Rows of a job's tile that the batch has: others are not sent.
template <class S>
FASTLSTM_DEVICE int batch_rows(const GroupFwd<S>& p, int64_t job) {
  const int64_t left = p.sequence.rows.N - job / p.sequence.directions * p.plan.rows;
  return static_cast<int>(left < p.plan.rows ? left : p.plan.rows);
}

// The two mbarriers of a block, each for every second step: what is sent for step s counts on one
// of block s % 2 of them.
class ClusterArrivals {
 public:
  // expected: bytes a step.
  FASTLSTM_DEVICE ClusterArrivals(void* shared, int expected)
      : barriers_(static_cast<uint64_t*>(shared)), expected_(expected) {}
  FASTLSTM_DEVICE void start() const {
    if (threadIdx.x == 0) {
      device::mbarrier_init(barriers_, 1);
      device::mbarrier_init(barriers_ + 1, 1);
    }
    device::cluster_sync();
  }
  FASTLSTM_DEVICE void wait(int64_t s) const {
    uint64_t* barrier = at(s);
    if (threadIdx.x == 0) device::mbarrier_expect_tx(barrier, expected_);
    device::mbarrier_wait(barrier, static_cast<int>((s - 1) / 2 % 2));
  }
  FASTLSTM_DEVICE uint64_t* at(int64_t s) const { return barriers_ + s % 2; }

 private:
  uint64_t* barriers_;
  int expected_;
};

// Into the shared memory of all blocks of the cluster, where two buffers are enough: who sends what
// enters step s + 2 has received what enters step s + 1, which a block sends only after the barrier
// behind its products of step s.
template <class S>
class ClusterGather {
 public:
  static constexpr Exchange kExchange = Exchange::kCluster;

  FASTLSTM_DEVICE ClusterGather(const GroupFwd<S>& p, const FwdLayout& layout, char* shared,
                                int64_t job)
      : row_bytes_(layout.row_bytes),
        tile_bytes_(layout.tile_bytes),
        tiles_(shared + layout.tiles),
        blocks_(p.plan.blocks),
        batch_rows_(batch_rows(p, job)),
        arrivals_(shared + layout.barriers,
                  batch_rows_ * p.plan.units * p.plan.blocks * static_cast<int>(sizeof(S))) {}

  FASTLSTM_DEVICE OperandRows<S> rows(int64_t s) const {
    return {tiles_ + s % 2 * tile_bytes_, row_bytes_};
  }
  FASTLSTM_DEVICE void start() const { arrivals_.start(); }
  FASTLSTM_DEVICE void receive(int64_t s) const { arrivals_.wait(s); }
  FASTLSTM_DEVICE void send(int64_t s, int row, int chunk, Word4 words, int part, int parts) const {
    if (row >= batch_rows_) return;
    for (int rank = part; rank < blocks_; rank += parts) {
      device::store_async_16(device::cluster_shared(rows(s).chunk_at(row, chunk), rank), words,
                             device::cluster_shared(arrivals_.at(s), rank));
    }
  }

 private:
  int row_bytes_, tile_bytes_;
  char* tiles_;
  int blocks_, batch_rows_;
  ClusterArrivals arrivals_;
};

// Through L2, in memory that holds kNotSent at first: a slot for each step, so that none is written
// twice and a word that differs has come. Each word says so for itself: no order among stores, and
// no barrier, is needed.
template <class S>
class GridGather {
 public:
  static constexpr Exchange kExchange = Exchange::kGrid;

  FASTLSTM_DEVICE GridGather(const GroupFwd<S>& p, const FwdLayout& layout, char* shared,
                             int64_t job)
      : rows_(shared + layout.tiles, layout.row_bytes),
        row_chunks_(p.plan.units * p.plan.blocks / kPerChunk<S>),
        batch_rows_(batch_rows(p, job)),
        chunks_(batch_rows_ * row_chunks_),
        slot_chunks_(p.plan.rows * row_chunks_),
        first_{static_cast<int>(threadIdx.x) / row_chunks_,
               static_cast<int>(threadIdx.x) % row_chunks_},
        step_{kGroupThreads / row_chunks_, kGroupThreads % row_chunks_} {
    const SequenceFwdDirection<S>& d = p.sequence.direction[0];
    const int64_t steps = d.t_end - d.t_begin;
    slots_ = static_cast<Word4*>(p.exchange) + job * steps * slot_chunks_;
  }

  FASTLSTM_DEVICE OperandRows<S> rows(int64_t) const { return rows_; }
  FASTLSTM_DEVICE void start() const {}
  FASTLSTM_DEVICE void receive(int64_t s) const {
    const Word4* from = slot(s);
    Place at = first_;
    for (int first = static_cast<int>(threadIdx.x); first < chunks_;
         first += kBatch * kGroupThreads)
      receive_batch(from, first, at);
    device::sync_block();
  }
  FASTLSTM_DEVICE void send(int64_t s, int row, int chunk, Word4 words, int part, int) const {
    if (part > 0 || row >= batch_rows_) return;
    FASTLSTM_UNROLL
    for (int i = 0; i < kChunkWords; ++i)
      if (words.w[i] == kNotSent) words.w[i] = kNan;
    device::store_relaxed_16(slot(s) + row * row_chunks_ + chunk, words);
  }

 private:
  // Chunks that a thread asks for at a time: the way to L2 is long.
  static constexpr int kBatch = 4;
  static constexpr uint32_t kNan = 0x7fff7fffu;  // in every type

  // Of a chunk that this thread receives: it takes every kGroupThreads-th.
  struct Place {
    int row, chunk;
  };
  FASTLSTM_DEVICE void advance(Place& at) const {
    at.row += step_.row;
    at.chunk += step_.chunk;
    if (at.chunk >= row_chunks_) {
      at.chunk -= row_chunks_;
      at.row += 1;
    }
  }

  FASTLSTM_DEVICE Word4* slot(int64_t s) const { return slots_ + (s - 1) * slot_chunks_; }
  FASTLSTM_DEVICE static bool has_come(const Word4& v) {
    return v.w[0] != kNotSent && v.w[1] != kNotSent && v.w[2] != kNotSent && v.w[3] != kNotSent;
  }
  FASTLSTM_DEVICE void receive_batch(const Word4* from, int first, Place& at) const {
    Word4 v[kBatch];
    device::Patience patience;
    bool all = false;
    FASTLSTM_UNROLL
    for (int i = 0; i < kBatch; ++i) v[i] = Word4{kNotSent, kNotSent, kNotSent, kNotSent};
    while (!all) {
      all = true;
      FASTLSTM_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int chunk = first + i * kGroupThreads;
        if (chunk < chunks_ && !has_come(v[i])) v[i] = device::load_relaxed_16(from + chunk);
      }
      FASTLSTM_UNROLL
      for (int i = 0; i < kBatch; ++i)
        all = all && (first + i * kGroupThreads >= chunks_ || has_come(v[i]));
      if (!all) patience.look();
    }
    FASTLSTM_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * kGroupThreads < chunks_) *rows_.chunk_at(at.row, at.chunk) = v[i];
      advance(at);
    }
  }

  OperandRows<S> rows_;
  int row_chunks_, batch_rows_, chunks_, slot_chunks_;
  Place first_, step_;
  Word4* slots_;
};

}  // namespace cuda
}  // namespace fastlstm
