// Forward of persistent_block.h. The rows of W_hh of 8 units are an octet for each gate, so that a
// lane has all gates of its unit in two rows of the batch, and keeps their states in registers.
#pragma once

#include "persistent_rows.cuh"
#include "persistent_shape.cuh"
#include "step.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kShapeIndex>
class BlockFwd {
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kBiases = kGates + kTraits.separate;
  static constexpr int kReserve = kTraits.reserve;

 public:
  static constexpr BlockShape kShape = fwd_shape<S>(kGates, kShapeIndex);
  static constexpr int kOctets = kGates * kShape.octets;  // of rows of W_hh in a warp
  using Params = SequenceFwd<S>;
  static constexpr int kQueueBytes = kQueueSteps * kRowTile * sizeof(FwdRow);

  FASTLSTM_HOST_DEVICE static BlockLayout<S> layout(int64_t H) {
    return {8 * kShape.octets, kOctets, kShape.register_blocks, H, H};
  }

  FASTLSTM_DEVICE explicit BlockFwd(const SequenceFwd<S>& p)
      : p_(p),
        d_(p.direction[blockIdx.y]),
        H_(static_cast<int>(p.rows.H)),
        layout_(layout(H_)),
        queue_(layout_.queue(), kRowTile),
        steps_(p, d_, first_row()) {}

  FASTLSTM_DEVICE void operator()() {
    load_weights();
    layout_.clear_tiles();
    if (queue_.is_mine()) {
      queue_.push(0, look_up(0));
      queue_.push(1, look_up(1));
    }
    device::sync_block();
    load_states();
    device::sync_block();
    Gates igates = load_igates(0);
    for (int64_t s = 0; s < steps_.count(); ++s) {
      // What the next steps need is under way during this one.
      FwdRow coming;
      if (queue_.is_mine()) coming = look_up(s + 2);
      Gates hgates, next_igates;
      if (kShape.loads_early) next_igates = load_igates(s + 1);
      w_.multiply(layout_.tile(s), hgates.of);
      for_each_cell([&](int o, int i) { compute(s, o, i, igates, hgates); });
      if (!kShape.loads_early) next_igates = load_igates(s + 1);
      if (queue_.is_mine()) queue_.push(s + 2, coming);
      device::sync_block();
      igates = next_igates;
    }
  }

 private:
  struct Gates {
    float of[kOctets][kLaneRows];  // octet of units * kGates + gate, row
    FASTLSTM_DEVICE void get(int o, int i, V (&gates)[kGates]) const {
      FASTLSTM_UNROLL
      for (int g = 0; g < kGates; ++g) gates[g] = {of[o * kGates + g][i]};
    }
  };

  FASTLSTM_DEVICE static int64_t first_row() { return int64_t{blockIdx.x} * kRowTile; }
  // Octets of units and rows of the lane.
  template <class F>
  FASTLSTM_DEVICE static void for_each_cell(F&& f) {
    FASTLSTM_UNROLL
    for (int o = 0; o < kShape.octets; ++o) {
      FASTLSTM_UNROLL
      for (int i = 0; i < kLaneRows; ++i) f(o, i);
    }
  }
  FASTLSTM_DEVICE static int unit(int o) {
    return (device::warp() * kShape.octets + o) * 8 + device::lane() / 4;
  }
  FASTLSTM_DEVICE static int row(int i) { return device::lane() % 4 * kLaneRows + i; }
  FASTLSTM_DEVICE bool exists(int o) const { return unit(o) < H_; }

  FASTLSTM_DEVICE void load_weights() {
    w_.load(layout_.matrix(), layout_.blocks, [&](int octet, int k) {
      const int64_t gate = octet % kGates, j = unit(octet / kGates);
      return j < H_ && k < H_ ? d_.w_hh[(gate * H_ + j) * p_.w_hh_stride + k] : S(0.0f);
    });
    FASTLSTM_UNROLL
    for (int o = 0; o < kShape.octets; ++o) {
      FASTLSTM_UNROLL
      for (int g = 0; g < kBiases; ++g)
        bias_[o][g] = {d_.bias && exists(o) ? d_.bias[g * H_ + unit(o)] : 0};
    }
  }

  // h goes to both tiles: a row that has no step yet is not in either when it begins.
  FASTLSTM_DEVICE void load_states() {
    for_each_cell([&](int o, int i) {
      state_[o][i] = V::broadcast(0);
      const int64_t n = first_row() + row(i);
      if (n >= p_.rows.N || !exists(o)) return;
      const V h = load(d_.h_begin + n * H_ + unit(o));
      store(d_.h_end + n * H_ + unit(o), h);  // of rows without a step
      state_[o][i] = d_.state ? V{d_.state[n * H_ + unit(o)]} : h;
      for (int s = 0; s < 2; ++s) set_operand(s, o, i, h);
    });
  }
  FASTLSTM_DEVICE void store_states(int o, int i, V h) const {
    const int64_t at = (first_row() + row(i)) * H_ + unit(o);
    store(d_.h_end + at, h);
    if (d_.state) d_.state[at] = state_[o][i].v;
  }
  // What W_hh is to see in step s.
  FASTLSTM_DEVICE void set_operand(int64_t s, int o, int i, V h) const {
    const float numbers[1] = {h.v};
    layout_.tile(s).set(row(i), unit(o), numbers);
  }

  FASTLSTM_DEVICE FwdRow look_up(int64_t s) const {
    return steps_.look_up(s, first_row() + threadIdx.x);
  }

  FASTLSTM_DEVICE Gates load_igates(int64_t s) const {
    Gates gates;
    for_each_cell([&](int o, int i) {
      const int64_t from = queue_.at(s, row(i)).igates;
      FASTLSTM_UNROLL
      for (int g = 0; g < kGates; ++g) {
        gates.of[o * kGates + g][i] =
            from >= 0 && exists(o) ? d_.igates[(from * kGates + g) * H_ + unit(o)] : 0;
      }
    });
    return gates;
  }

  FASTLSTM_DEVICE void compute(int64_t s, int o, int i, const Gates& igates, const Gates& hgates) {
    const FwdRow& now = queue_.at(s, row(i));
    if (now.place < 0 || !exists(o)) return;
    V x[kGates], w_h[kGates], reserve[kReserve ? kReserve : 1];
    igates.get(o, i, x);
    hgates.get(o, i, w_h);
    V state = state_[o][i];
    const V h = C::fwd(x, w_h, bias_[o], state, reserve);
    if (!kTraits.has_c) state = h;

    store(d_.h + now.place * p_.h_stride + unit(o), h);
    if (d_.c) d_.c[now.place * p_.c_stride + unit(o)] = state.v;
    if (d_.reserve) {
      FASTLSTM_UNROLL
      for (int g = 0; g < kReserve; ++g)
        store(d_.reserve + (now.compact * kReserve + g) * H_ + unit(o), reserve[g]);
    }
    const FwdRow& next = queue_.at(s + 1, row(i));
    const V zero = V::broadcast(0), h_next = next.cut ? zero : h;
    state_[o][i] = next.cut ? zero : state;
    set_operand(s + 1, o, i, h_next);
    if (next.place < 0) store_states(o, i, h_next);
  }

  const SequenceFwd<S>& p_;
  const SequenceFwdDirection<S>& d_;
  const int H_;
  const BlockLayout<S> layout_;
  const RowQueue<FwdRow> queue_;
  const FwdSteps<S> steps_;
  ResidentMatrix<S, kShape.warps, kOctets, kShape.register_blocks> w_;
  V bias_[kShape.octets][kBiases];
  V state_[kShape.octets][kLaneRows];
};

}  // namespace cuda
}  // namespace fastlstm
