// How the parts of dh that the blocks of a group have computed come to the blocks that own the
// units, and are added up there, in the order of the blocks.
//
// A part is what one block has for the units of another, as mma leaves it: of every 16 units and
// 8 rows 32 pieces of 16 bytes, those of a lane. An exchange has
//   start()                          before the first step, by all threads
//   send(s, unit tile, row tile, d)  what enters step s
//   receive(s)                       waits for what was sent for step s, s > 0
//   sum(s, row, unit)                of all blocks, once received
//   finish()                         after the last, before another job
#pragma once

#include "gather.cuh"

namespace fastlstm {
namespace cuda {

// The piece of a lane, permuted so that neither the 8 lanes that store at a time nor those that
// read words of them conflict.
template <int kUnits>
FASTLSTM_DEVICE unsigned part_piece(unsigned row_tile, unsigned unit_tile, unsigned lane) {
  constexpr unsigned kUnitTiles = kUnits / kMmaRows;
  const unsigned g = lane / 4, p = lane % 4;
  return (row_tile * kUnitTiles + unit_tile % kUnitTiles) * 32 + p * 8 + (g ^ 2 * p);
}
// Of unit and row, among those of a block: its word in a part. Lanes that have 16 units in rows 2 p
// and 2 p + 1 read 32 adjacent words.
template <int kUnits>
FASTLSTM_DEVICE unsigned part_word(unsigned row, unsigned unit) {
  const unsigned lane = unit % 8 * 4 + row % kRowTile / 2;
  return part_piece<kUnits>(row / kRowTile, unit / kMmaRows, lane) * kChunkWords +
         unit % kMmaRows / 8 * 2 + row % 2;
}

FASTLSTM_DEVICE Word4 words_of(const float (&d)[4]) {
  Word4 words;
  FASTLSTM_UNROLL
  for (int i = 0; i < kChunkWords; ++i) words.w[i] = device::bit_cast<uint32_t>(d[i]);
  return words;
}

// Into the shared memory of the owner. Two buffers are enough, as in ClusterGather: the barrier of
// a block is the one behind its cells.
template <class S, int kUnits>
class ClusterScatter {
 public:
  static constexpr Exchange kExchange = Exchange::kCluster;

  FASTLSTM_DEVICE ClusterScatter(const GroupBwd<S>& p, const BwdLayout& layout, char* shared,
                                 const GroupPlace& here, int64_t)
      : sums_(shared + layout.sums),
        part_bytes_(layout.sums_bytes),
        blocks_(p.plan.blocks),
        member_(here.member),
        arrivals_(shared + layout.barriers, layout.sums_bytes * p.plan.blocks) {}

  FASTLSTM_DEVICE void start() const { arrivals_.start(); }
  FASTLSTM_DEVICE void send(int64_t s, int unit_tile, int row_tile, const float (&d)[4]) const {
    const int owner = unit_tile * kMmaRows / kUnits;
    const int piece = part_piece<kUnits>(row_tile, unit_tile, device::lane());
    device::store_async_16(
        device::cluster_shared(reinterpret_cast<Word4*>(part(s, member_)) + piece, owner),
        words_of(d), device::cluster_shared(arrivals_.at(s), owner));
  }
  FASTLSTM_DEVICE void receive(int64_t s) const { arrivals_.wait(s); }
  FASTLSTM_DEVICE float sum(int64_t s, int row, int unit) const {
    const int word = part_word<kUnits>(row, unit);
    float sum = 0;
    for (int block = 0; block < blocks_; ++block)
      sum += reinterpret_cast<const float*>(part(s, block))[word];
    return sum;
  }
  FASTLSTM_DEVICE void finish() const {}

 private:
  FASTLSTM_DEVICE char* part(int64_t s, int block) const {
    return sums_ + (s % 2 * blocks_ + block) * part_bytes_;
  }

  char* sums_;
  int part_bytes_;
  int blocks_, member_;
  ClusterArrivals arrivals_;
};

// Through L2, [2, owner, sender, part] for each group, with a barrier of the group in between. Data
// that is its own flag, as in GridGather, would need a slot for every step, and here that is a lot.
template <class S, int kUnits>
class GridScatter {
 public:
  static constexpr Exchange kExchange = Exchange::kGrid;

  FASTLSTM_DEVICE GridScatter(const GroupBwd<S>& p, const BwdLayout& layout, char* shared,
                              const GroupPlace& here, int64_t job)
      : shared_(reinterpret_cast<Word4*>(shared + layout.sums)),
        blocks_(p.plan.blocks),
        member_(here.member),
        pieces_(p.plan.rows * kUnits / kChunkWords),
        first_piece_(static_cast<int>(threadIdx.x) % pieces_),
        first_part_(static_cast<int>(threadIdx.x) / pieces_),
        counter_(p.counters + job * kCounterStride) {
    const int64_t all = int64_t{2} * blocks_ * blocks_ * pieces_;
    parts_ = static_cast<Word4*>(p.exchange) + here.group * all;
  }

  FASTLSTM_DEVICE void start() const {}
  FASTLSTM_DEVICE void send(int64_t s, int unit_tile, int row_tile, const float (&d)[4]) const {
    const int owner = unit_tile * kMmaRows / kUnits;
    const int piece = part_piece<kUnits>(row_tile, unit_tile, device::lane());
    device::store_relaxed_16(part(s, owner, member_) + piece, words_of(d));
  }
  // Every piece is read by kParts threads, each of every kParts-th block.
  FASTLSTM_DEVICE void receive(int64_t s) {
    device::group_barrier(counter_, static_cast<unsigned>(blocks_), epoch_);
    int piece = first_piece_, part = first_part_;
    for (int i = static_cast<int>(threadIdx.x); i < kParts * pieces_; i += kGroupThreads) {
      shared_[i] = sum_of_blocks(s, piece, part);
      piece += kGroupThreads % pieces_;
      part += kGroupThreads / pieces_;
      if (piece >= pieces_) {
        piece -= pieces_;
        part += 1;
      }
    }
    device::sync_block();
  }
  FASTLSTM_DEVICE float sum(int64_t, int row, int unit) const {
    const int word = part_word<kUnits>(row, unit);
    float sum = 0;
    FASTLSTM_UNROLL
    for (int i = 0; i < kParts; ++i)
      sum += reinterpret_cast<const float*>(shared_ + i * pieces_)[word];
    return sum;
  }
  // The next job sends into the buffers that others may still read.
  FASTLSTM_DEVICE void finish() {
    device::group_barrier(counter_, static_cast<unsigned>(blocks_), epoch_);
  }

 private:
  static constexpr int kParts = grid_sum_parts(kUnits);
  // Loads of a thread under way at a time: the way to L2 is long.
  static constexpr int kBatch = 4;

  FASTLSTM_DEVICE Word4* part(int64_t s, int owner, int sender) const {
    return parts_ + ((s % 2 * blocks_ + owner) * blocks_ + sender) * int64_t{pieces_};
  }
  FASTLSTM_DEVICE Word4 sum_of_blocks(int64_t s, int piece, int first) const {
    float sums[kChunkWords] = {};
    for (int block = first; block < blocks_; block += kBatch * kParts) {
      Word4 v[kBatch];
      FASTLSTM_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int sender = block + i * kParts;
        v[i] = Word4{};
        if (sender < blocks_) v[i] = device::load_relaxed_16(part(s, member_, sender) + piece);
      }
      FASTLSTM_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        FASTLSTM_UNROLL
        for (int w = 0; w < kChunkWords; ++w) sums[w] += device::bit_cast<float>(v[i].w[w]);
      }
    }
    return words_of(sums);
  }

  Word4* shared_;
  int blocks_, member_, pieces_, first_piece_, first_part_;
  unsigned* counter_;
  unsigned epoch_ = 0;
  Word4* parts_;
};

}  // namespace cuda
}  // namespace fastlstm
