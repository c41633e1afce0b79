// Blocks of a whole grid, through L2; and the loop alone, whose time is taken off.
#pragma once

#include "exchange.cuh"

namespace fastlstm {
namespace exchange {

// Nothing is exchanged: a thread sums what it has made.
template <bool kReduce>
class Empty {
 public:
  static constexpr bool kReduces = kReduce;

  FASTLSTM_DEVICE Empty(const Params&, const Place&, uint32_t*) {}
  FASTLSTM_DEVICE int copies() const { return 1; }
  FASTLSTM_DEVICE void send(int, int, const Word4& v, const Share&) { sum_ += sum_of(v); }
  FASTLSTM_DEVICE uint32_t receive(int) { return sum_; }
  FASTLSTM_DEVICE void finish() {}

 private:
  uint32_t sum_ = 0;
};

// That of device.cuh.
class CounterBarrier {
 public:
  FASTLSTM_DEVICE void wait(const Params& p, int group) {
    group_barrier(p.counter + group * kCounterStride, static_cast<unsigned>(p.blocks), epoch_,
                  p.most_looks);
  }

 private:
  unsigned epoch_ = 0;
};

// A barrier of the group between the stores and the loads. Two buffers: who stores into one for the
// second time has passed a barrier that all reached after they had read it.
template <class Barrier, Fault kFault = Fault::kNone>
class ThroughBarrier {
 public:
  static constexpr bool kReduces = true;

  FASTLSTM_DEVICE ThroughBarrier(const Params& p, const Place& here, uint32_t*)
      : p_(p), group_(here.group), state_(p.state + 2 * here.group * p.chunks) {}
  FASTLSTM_DEVICE int copies() const { return 1; }
  FASTLSTM_DEVICE void send(int step, int chunk, const Word4& v, const Share&) {
    store_relaxed_16(buffer(step) + chunk, v);
  }
  FASTLSTM_DEVICE uint32_t receive(int step) {
    if (kFault != Fault::kNoWait) barrier_.wait(p_, group_);
    const Word4* from = buffer(step);
    return sum_chunks(static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), p_.chunks,
                      [=](int chunk) { return load_relaxed_16(from + chunk); });
  }
  FASTLSTM_DEVICE void finish() {}

 private:
  FASTLSTM_DEVICE Word4* buffer(int step) const {
    return state_ + (kFault == Fault::kOneBuffer ? 0 : step % 2) * p_.chunks;
  }

  const Params& p_;
  const int group_;
  Word4* const state_;
  Barrier barrier_;
};

// Numbers that are their own flag.
template <Fault kFault = Fault::kNone>
class FlagInData {
 public:
  static constexpr bool kReduces = true;

  FASTLSTM_DEVICE FlagInData(const Params& p, const Place& here, uint32_t*)
      : p_(p), state_(p.state + static_cast<size_t>(here.group) * p.steps * p.chunks) {}
  FASTLSTM_DEVICE int copies() const { return 1; }
  FASTLSTM_DEVICE void send(int step, int chunk, const Word4& v, const Share&) {
    if (kFault == Fault::kNothingSent && chunk == 0) return;
    store_relaxed_16(slot(step) + chunk, v);
  }
  FASTLSTM_DEVICE uint32_t receive(int step) {
    const int stride = static_cast<int>(blockDim.x);
    uint32_t sum = 0;
    for (int c = static_cast<int>(threadIdx.x); c < p_.chunks; c += kBatch * stride) {
      sum += batch(slot(step), c, stride);
    }
    return sum;
  }
  FASTLSTM_DEVICE void finish() {}

 private:
  FASTLSTM_DEVICE Word4* slot(int step) const {
    return state_ + static_cast<size_t>(step) * p_.chunks;
  }

  FASTLSTM_DEVICE static bool poisoned(const Word4& v) {
    return v.w[0] == kPoison || v.w[1] == kPoison || v.w[2] == kPoison || v.w[3] == kPoison;
  }

  // All that are missing are asked for again at once: one after the other, each would cost the
  // whole way to L2.
  FASTLSTM_DEVICE uint32_t batch(const Word4* from, int first, int stride) const {
    Word4 v[kBatch];
    Patience patience(p_.most_looks);
    for (int i = 0; i < kBatch; ++i) {
      v[i] = Word4{};
      if (first + i * stride < p_.chunks) v[i] = load_relaxed_16(from + first + i * stride);
    }
    while (kFault != Fault::kNoWait) {
      bool missing = false;
      for (int i = 0; i < kBatch; ++i) missing = missing || poisoned(v[i]);
      if (!missing) break;
      patience.look();
      for (int i = 0; i < kBatch; ++i) {
        if (poisoned(v[i])) v[i] = load_relaxed_16(from + first + i * stride);
      }
    }
    uint32_t sum = 0;
    for (int i = 0; i < kBatch; ++i) sum += sum_of(v[i]);
    return sum;
  }

  const Params& p_;
  Word4* const state_;
};

}  // namespace exchange
}  // namespace fastlstm
