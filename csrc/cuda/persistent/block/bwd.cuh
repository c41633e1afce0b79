// Backward of block.h: dh of a step is W_hh^T times dgates of the step after. Two octets of rows of
// W_hh^T are 16 units, and a lane keeps dh and carry of its units in registers.
#pragma once

#include "base.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kShapeIndex>
struct BlockBwdTraits {
  using Number = S;
  using Steps = BwdSteps<Cell, S>;
  static constexpr int kGates = Cell<Lane<float>>::kGates;
  static constexpr BlockShape kShape = bwd_shape<S>(kGates, kShapeIndex);
  static constexpr int kOctets = kShape.octets;  // of rows of W_hh^T

  FASTLSTM_HOST_DEVICE static BlockLayout<S> layout(int64_t H) {
    return {8 * kOctets, kOctets, kShape.register_blocks, H, kGates * H};
  }
};

template <template <class> class Cell, class S, int kShapeIndex>
class BlockBwd : public BlockBase<BlockBwdTraits<Cell, S, kShapeIndex>> {
  using Base = BlockBase<BlockBwdTraits<Cell, S, kShapeIndex>>;
  using Base::p_, Base::d_, Base::cells_, Base::layout_, Base::steps_, Base::queue_, Base::w_;
  using typename Base::Steps;
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kDgates = kTraits.dgates, kReserve = kTraits.reserve;

 public:
  using Base::kShape, Base::kOctets;

  FASTLSTM_DEVICE explicit BlockBwd(const SequenceBwd<S>& p) : Base(p) {}

  FASTLSTM_DEVICE void operator()() {
    load_weights();
    this->begin();
    load_gradients();
    Inputs inputs = load_inputs(0);
    for (int64_t s = 0; s < steps_.count(); ++s) {
      // What the next steps need is under way during this one.
      queue_.look_up(steps_, s + 2);
      Inputs next_inputs;
      if (kShape.loads_early) next_inputs = load_inputs(s + 1);
      cells_.for_each([&](int o, int i) { compute(s, o, i, inputs.of[o][i]); });
      if (!kShape.loads_early) next_inputs = load_inputs(s + 1);
      queue_.push(s + 2);
      device::sync_block();
      float dh[kOctets][kLaneRows];
      w_.multiply(layout_.tile(s), dh);
      cells_.for_each([&](int o, int i) {
        if (queue_.at(s, cells_.row(i)).compact >= 0) gradients_[o][i].dh = {dh[o][i]};
      });
      inputs = next_inputs;
    }
    store_gradients();
  }

 private:
  struct Inputs {
    typename Steps::Inputs of[kOctets][kLaneRows];
  };

  // Column u * kGates + g of W_hh^T is row g * H + u of W_hh: a lane has all gates of a unit to
  // set.
  FASTLSTM_DEVICE void load_weights() {
    w_.load(layout_.matrix(), layout_.blocks, [&](int octet, int k) {
      const int64_t gate = k % kGates, u = k / kGates;
      return cells_.exists(octet) && u < cells_.H
                 ? d_.w_hh[(gate * cells_.H + u) * p_.w_hh_stride + cells_.unit(octet)]
                 : S(0.0f);
    });
  }

  FASTLSTM_DEVICE void load_gradients() {
    cells_.for_each([&](int o, int i) {
      gradients_[o][i] = {};
      state_[o][i] = {};
      if (!cells_.is_in_batch(o, i)) return;
      gradients_[o][i] = steps_.load_gradients(cells_.place(o, i));
      state_[o][i] = steps_.load_last_state(cells_.first_row() + cells_.row(i), cells_.unit(o));
    });
  }
  FASTLSTM_DEVICE void store_gradients() const {
    cells_.for_each([&](int o, int i) {
      if (cells_.is_in_batch(o, i)) steps_.store_gradients(cells_.place(o, i), gradients_[o][i]);
    });
  }
  FASTLSTM_DEVICE Inputs load_inputs(int64_t s) const {
    Inputs in = {};
    cells_.for_each([&](int o, int i) {
      if (!cells_.exists(o)) return;
      in.of[o][i] = steps_.load_inputs(s, queue_.at(s, cells_.row(i)), cells_.unit(o));
    });
    return in;
  }

  FASTLSTM_DEVICE void compute(int64_t s, int o, int i, const typename Steps::Inputs& in) {
    const V state = state_[o][i], zero = V::broadcast(0);
    state_[o][i] = in.state_before;
    const BwdRow& now = queue_.at(s, cells_.row(i));
    if (now.compact < 0 || !cells_.exists(o)) return;
    const bool cut_after = s > 0 && queue_.at(s - 1, cells_.row(i)).cut;
    const V dh = (cut_after ? zero : gradients_[o][i].dh) + load(&in.dy);
    V carry = (cut_after ? zero : gradients_[o][i].carry) + V{in.dc};
    V reserve[kReserve ? kReserve : 1], dgates[kDgates];
    in.get_reserve(reserve);
    C::bwd(reserve, state, now.cut ? zero : in.state_before, dh, dgates, carry);
    if (kTraits.has_carry) gradients_[o][i].carry = carry;
    steps_.store_dgates(now, cells_.unit(o), dgates);

    float seen[kGates];  // by W_hh
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g) seen[g] = dgates[g].v;
    layout_.tile(s).set(cells_.row(i), cells_.unit(o) * kGates, seen);
  }

  typename Steps::Gradients gradients_[kOctets][kLaneRows];
  V state_[kOctets][kLaneRows];
};

}  // namespace cuda
}  // namespace fastlstm
