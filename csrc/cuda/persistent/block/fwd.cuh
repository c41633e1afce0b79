// Forward of block.h. The rows of W_hh of 8 units are an octet for each gate, so that a lane has
// all gates of its unit in two rows of the batch, and keeps their states in registers.
#pragma once

#include "base.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kShapeIndex>
struct BlockFwdTraits {
  using Number = S;
  using Steps = FwdSteps<Cell, S>;
  static constexpr int kGates = Cell<Lane<float>>::kGates;
  static constexpr BlockShape kShape = fwd_shape<S>(kGates, kShapeIndex);
  static constexpr int kOctets = kGates * kShape.octets;  // of rows of W_hh

  FASTLSTM_HOST_DEVICE static BlockLayout<S> layout(int64_t H) {
    return {8 * kShape.octets, kOctets, kShape.register_blocks, H, H};
  }
};

template <template <class> class Cell, class S, int kShapeIndex>
class BlockFwd : public BlockBase<BlockFwdTraits<Cell, S, kShapeIndex>> {
  using Base = BlockBase<BlockFwdTraits<Cell, S, kShapeIndex>>;
  using Base::p_, Base::d_, Base::cells_, Base::layout_, Base::steps_, Base::queue_, Base::w_;
  using typename Base::Steps;
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kBiases = kGates + kTraits.separate;

 public:
  using Base::kShape, Base::kOctets;

  FASTLSTM_DEVICE explicit BlockFwd(const SequenceFwd<S>& p) : Base(p) {}

  FASTLSTM_DEVICE void operator()() {
    load_weights();
    this->begin();
    load_states();
    device::sync_block();
    Gates igates = load_igates(0);
    for (int64_t s = 0; s < steps_.count(); ++s) {
      // What the next steps need is under way during this one.
      queue_.look_up(steps_, s + 2);
      Gates hgates, next_igates;
      if (kShape.loads_early) next_igates = load_igates(s + 1);
      w_.multiply(layout_.tile(s), hgates.of);
      cells_.for_each([&](int o, int i) { compute(s, o, i, igates, hgates); });
      if (!kShape.loads_early) next_igates = load_igates(s + 1);
      queue_.push(s + 2);
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

  FASTLSTM_DEVICE void load_weights() {
    w_.load(layout_.matrix(), layout_.blocks, [&](int octet, int k) {
      const int64_t gate = octet % kGates, j = cells_.unit(octet / kGates);
      return j < cells_.H && k < cells_.H ? d_.w_hh[(gate * cells_.H + j) * p_.w_hh_stride + k]
                                          : S(0.0f);
    });
    FASTLSTM_UNROLL
    for (int o = 0; o < kShape.octets; ++o) {
      FASTLSTM_UNROLL
      for (int g = 0; g < kBiases; ++g)
        bias_[o][g] = {d_.bias && cells_.exists(o) ? d_.bias[g * cells_.H + cells_.unit(o)] : 0};
    }
  }

  // h goes to both tiles: a row that has no step yet is not in either when it begins.
  FASTLSTM_DEVICE void load_states() {
    cells_.for_each([&](int o, int i) {
      state_[o][i] = V::broadcast(0);
      if (!cells_.is_in_batch(o, i)) return;
      const V h = steps_.load_states(cells_.place(o, i), state_[o][i]);
      for (int s = 0; s < 2; ++s) set_operand(s, o, i, h);
    });
  }
  // What W_hh is to see in step s.
  FASTLSTM_DEVICE void set_operand(int64_t s, int o, int i, V h) const {
    const float numbers[1] = {h.v};
    layout_.tile(s).set(cells_.row(i), cells_.unit(o), numbers);
  }

  FASTLSTM_DEVICE Gates load_igates(int64_t s) const {
    Gates gates;
    cells_.for_each([&](int o, int i) {
      const int64_t from = queue_.at(s, cells_.row(i)).igates;
      FASTLSTM_UNROLL
      for (int g = 0; g < kGates; ++g) {
        gates.of[o * kGates + g][i] =
            from >= 0 && cells_.exists(o) ? *steps_.igate(from, g, cells_.unit(o)) : 0;
      }
    });
    return gates;
  }

  FASTLSTM_DEVICE void compute(int64_t s, int o, int i, const Gates& igates, const Gates& hgates) {
    const FwdRow& now = queue_.at(s, cells_.row(i));
    if (now.place < 0 || !cells_.exists(o)) return;
    V x[kGates], w_h[kGates];
    igates.get(o, i, x);
    hgates.get(o, i, w_h);
    typename Steps::Outputs made;
    made.state = state_[o][i];
    made.h = C::fwd(x, w_h, bias_[o], made.state, made.reserve);
    if (!kTraits.has_c) made.state = made.h;
    steps_.store_outputs(now, cells_.unit(o), made);

    const FwdRow& next = queue_.at(s + 1, cells_.row(i));
    const V zero = V::broadcast(0), h_next = next.cut ? zero : made.h;
    state_[o][i] = next.cut ? zero : made.state;
    set_operand(s + 1, o, i, h_next);
    if (next.place < 0) steps_.store_states(cells_.place(o, i), h_next, state_[o][i]);
  }

  V bias_[kShape.octets][kBiases];
  V state_[kShape.octets][kLaneRows];
};

}  // namespace cuda
}  // namespace fastlstm
