// Backward of persistent_block.h: dh of a step is W_hh^T times dgates of the step after. Two octets
// of rows of W_hh^T are 16 units, and a lane keeps dh and carry of its units in registers.
#pragma once

#include "persistent_rows.cuh"
#include "persistent_shape.cuh"
#include "step.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kShapeIndex>
class BlockBwd {
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kDgates = kTraits.dgates, kReserve = kTraits.reserve;
  static constexpr bool kReadsStates = C::kBwdReadsState || C::kBwdReadsPrevState;

 public:
  static constexpr BlockShape kShape = bwd_shape<S>(kGates, kShapeIndex);
  static constexpr int kOctets = kShape.octets;

  using Params = SequenceBwd<S>;
  static constexpr int kQueueBytes = kQueueSteps * kRowTile * sizeof(BwdRow);

  FASTLSTM_HOST_DEVICE static BlockLayout<S> layout(int64_t H) {
    return {8 * kOctets, kOctets, kShape.register_blocks, H, kGates * H};
  }

  FASTLSTM_DEVICE explicit BlockBwd(const SequenceBwd<S>& p)
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
    load_gradients();
    load_last_state();
    Inputs inputs = load_inputs(0);
    for (int64_t s = 0; s < steps_.count(); ++s) {
      // What the next steps need is under way during this one.
      BwdRow coming;
      if (queue_.is_mine()) coming = look_up(s + 2);
      Inputs next_inputs;
      if (kShape.loads_early) next_inputs = load_inputs(s + 1);
      for_each_cell([&](int o, int i) { compute(s, o, i, inputs); });
      if (!kShape.loads_early) next_inputs = load_inputs(s + 1);
      if (queue_.is_mine()) queue_.push(s + 2, coming);
      device::sync_block();
      float dh[kOctets][kLaneRows];
      w_.multiply(layout_.tile(s), dh);
      for_each_cell([&](int o, int i) {
        if (queue_.at(s, row(i)).compact >= 0) dh_[o][i] = {dh[o][i]};
      });
      inputs = next_inputs;
    }
    store_gradients();
  }

 private:
  // Of a step. As they lie in memory, as long as they only wait.
  struct Inputs {
    S reserve[kOctets][kLaneRows][kReserve ? kReserve : 1], dy[kOctets][kLaneRows];
    float dc[kOctets][kLaneRows];
    V state_before[kOctets][kLaneRows];
  };

  FASTLSTM_DEVICE static int64_t first_row() { return int64_t{blockIdx.x} * kRowTile; }

  // Octets of units and rows of the lane.
  template <class F>
  FASTLSTM_DEVICE static void for_each_cell(F&& f) {
    FASTLSTM_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      FASTLSTM_UNROLL
      for (int i = 0; i < kLaneRows; ++i) f(o, i);
    }
  }
  FASTLSTM_DEVICE static int unit(int o) {
    return (device::warp() * kOctets + o) * 8 + device::lane() / 4;
  }
  FASTLSTM_DEVICE static int row(int i) { return device::lane() % 4 * kLaneRows + i; }
  FASTLSTM_DEVICE bool exists(int o) const { return unit(o) < H_; }

  // Column u * kGates + g of W_hh^T is row g * H + u of W_hh: a lane has all gates of a unit to
  // set.
  FASTLSTM_DEVICE void load_weights() {
    w_.load(layout_.matrix(), layout_.blocks, [&](int octet, int k) {
      const int64_t gate = k % kGates, u = k / kGates;
      return exists(octet) && u < H_ ? d_.w_hh[(gate * H_ + u) * p_.w_hh_stride + unit(octet)]
                                     : S(0.0f);
    });
  }

  // f(o, i, place in a tensor [N, H]) of the units and rows that exist.
  template <class F>
  FASTLSTM_DEVICE void for_each_state(F&& f) const {
    for_each_cell([&](int o, int i) {
      const int64_t n = first_row() + row(i);
      if (n < p_.rows.N && exists(o)) f(o, i, n * H_ + unit(o));
    });
  }
  FASTLSTM_DEVICE void load_gradients() {
    for_each_cell([&](int o, int i) { dh_[o][i] = carry_[o][i] = V::broadcast(0); });
    for_each_state([&](int o, int i, int64_t at) {
      dh_[o][i] = {d_.dh[at]};
      if (d_.carry) carry_[o][i] = {d_.carry[at]};
    });
  }
  FASTLSTM_DEVICE void store_gradients() const {
    for_each_state([&](int o, int i, int64_t at) {
      d_.dh[at] = dh_[o][i].v;
      if (d_.carry) d_.carry[at] = carry_[o][i].v;
    });
  }

  FASTLSTM_DEVICE BwdRow look_up(int64_t s) const {
    return steps_.look_up(s, first_row() + threadIdx.x);
  }

  FASTLSTM_DEVICE V load_state(bool initial, int64_t place, int o) const {
    if constexpr (kTraits.has_c) {
      return {(initial ? d_.c_initial : d_.c)[place * p_.c_stride + unit(o)]};
    } else {
      return load((initial ? d_.h_initial : d_.h) + place * p_.h_stride + unit(o));
    }
  }
  // States after the step that is taken first; those of the others are states before a step.
  FASTLSTM_DEVICE void load_last_state() {
    for_each_cell([&](int o, int i) { state_[o][i] = V::broadcast(0); });
    if (!C::kBwdReadsState) return;
    for_each_state([&](int o, int i, int64_t) {
      const int64_t place = steps_.last_place(first_row() + row(i));
      if (place >= 0) state_[o][i] = load_state(false, place, o);
    });
  }

  FASTLSTM_DEVICE Inputs load_inputs(int64_t s) const {
    Inputs in = {};
    const int64_t t = steps_.time(s);
    for_each_cell([&](int o, int i) {
      if (!exists(o)) return;
      const BwdRow& now = queue_.at(s, row(i));
      if (kReadsStates && now.before >= 0)
        in.state_before[o][i] = load_state(now.before_is_initial, now.before, o);
      if (now.compact < 0) return;
      FASTLSTM_UNROLL
      for (int g = 0; g < kReserve; ++g)
        in.reserve[o][i][g] = d_.reserve[(now.compact * kReserve + g) * H_ + unit(o)];
      if (d_.dy) in.dy[o][i] = d_.dy[t * p_.dy_t_stride + now.grad * p_.dy_n_stride + unit(o)];
      if (d_.dc_seq)
        in.dc[o][i] = d_.dc_seq[t * p_.dc_seq_t_stride + now.grad * p_.dc_seq_n_stride + unit(o)];
    });
    return in;
  }

  FASTLSTM_DEVICE void compute(int64_t s, int o, int i, const Inputs& in) {
    const V state = state_[o][i], zero = V::broadcast(0);
    state_[o][i] = in.state_before[o][i];
    const BwdRow& now = queue_.at(s, row(i));
    if (now.compact < 0 || !exists(o)) return;
    const bool cut_after = s > 0 && queue_.at(s - 1, row(i)).cut;
    const V dh = (cut_after ? zero : dh_[o][i]) + load(&in.dy[o][i]);
    V carry = (cut_after ? zero : carry_[o][i]) + V{in.dc[o][i]};
    V reserve[kReserve ? kReserve : 1], dgates[kDgates];
    FASTLSTM_UNROLL
    for (int g = 0; g < kReserve; ++g) reserve[g] = load(&in.reserve[o][i][g]);
    C::bwd(reserve, state, now.cut ? zero : in.state_before[o][i], dh, dgates, carry);
    if (kTraits.has_carry) carry_[o][i] = carry;

    FASTLSTM_UNROLL
    for (int g = 0; g < kDgates; ++g)
      store(d_.dgates + (now.compact * kDgates + g) * H_ + unit(o), dgates[g]);
    float seen[kGates];  // by W_hh
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g) seen[g] = dgates[g].v;
    layout_.tile(s).set(row(i), unit(o) * kGates, seen);
  }

  const SequenceBwd<S>& p_;
  const SequenceBwdDirection<S>& d_;
  const int H_;
  const BlockLayout<S> layout_;
  const RowQueue<BwdRow> queue_;
  const BwdSteps<S> steps_;
  ResidentMatrix<S, kShape.warps, kOctets, kShape.register_blocks> w_;
  V dh_[kOctets][kLaneRows], carry_[kOctets][kLaneRows], state_[kOctets][kLaneRows];
};

}  // namespace cuda
}  // namespace fastlstm
