// Backward of group.h. A step: the cells of the block, with what its units get of dh from all
// blocks; a barrier; the products of its rows of W_hh with their dgates, to the blocks that own the
// units.
#pragma once

#include "../rows.cuh"
#include "cells.cuh"
#include "scatter.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kUnits, template <class, int> class Scatter>
class GroupBwdJob {
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kDgates = kTraits.dgates, kReserve = kTraits.reserve;

 public:
  using Params = GroupBwd<S>;

  FASTLSTM_DEVICE GroupBwdJob(const Params& p, const GroupPlace& here, int64_t job)
      : p_(p.sequence),
        d_(p_.direction[job % p_.directions]),
        cells_(p_.rows, p.plan, here.member, job / p_.directions),
        shared_(device::shared_memory<char>()),
        layout_(bwd_layout(kTraits, Operand<S>::kKind, Scatter<S, kUnits>::kExchange, p.plan)),
        steps_(p_, d_, cells_.first_row),
        queue_(shared_ + layout_.queue, cells_.first_row, cells_.rows),
        scatter_(p, layout_, shared_, here, job),
        w_(shared_, layout_.m_tiles) {}

  FASTLSTM_DEVICE void operator()() {
    const int units = cells_.first_unit < cells_.H ? cells_.H - cells_.first_unit : 0;
    w_.load(MatrixRows<S>(d_.w_hh_t + (units > 0 ? cells_.first_unit * kGates : 0),
                          int64_t{cells_.H} * kGates, (units < kUnits ? units : kUnits) * kGates),
            cells_.H);
    dgates(0).clear(cells_.rows);
    dgates(1).clear(cells_.rows);
    queue_.look_up(steps_, 0);
    queue_.push(0);
    queue_.look_up(steps_, 1);
    device::sync_block();
    cells_.for_each([&](CellPlace at) { load_gradients(at); });
    Inputs inputs[kHeld];
    hold_inputs(0, inputs);
    scatter_.start();
    for (int64_t s = 0; s < steps_.count(); ++s) step(s, inputs);
    if (steps_.count() > 0) {
      scatter_.receive(steps_.count());
      cells_.for_each([&](CellPlace at) { take_dh(steps_.count(), at); });
    }
    cells_.for_each([&](CellPlace at) { store_gradients(at); });
    scatter_.finish();
  }

 private:
  using Steps = BwdSteps<Cell, S>;
  using Inputs = typename Steps::Inputs;

  // An exchange through L2 takes long enough to load them meanwhile, and registers for itself.
  static constexpr bool kLoadsEarly = Scatter<S, kUnits>::kExchange == Exchange::kCluster;
  // Of the cells of a warp, the first ones, whose inputs are loaded ahead: early those of 8 rows.
  static constexpr int kHeld =
      kLoadsEarly ? ceil_div(kRowTile / 2 * kUnits / kMmaRows, kGroupWarps) : 1;

  // inputs: of step s -> of step s + 1.
  FASTLSTM_DEVICE void step(int64_t s, Inputs (&inputs)[kHeld]) {
    if (s > 0) scatter_.receive(s);
    const int sets = cells_.sets();
    // Those of more rows are loaded one cell ahead.
    Inputs next = {};
    const int first = device::warp() + kHeld * kGroupWarps;
    if (first < sets) next = load_inputs(s, cells_.of_set(first));
    FASTLSTM_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const int set = device::warp() + i * kGroupWarps;
      if (set < sets) compute(s, cells_.of_set(set), inputs[i]);
    }
    for (int set = first; set < sets; set += kGroupWarps) {
      const Inputs now = next;
      if (set + kGroupWarps < sets) next = load_inputs(s, cells_.of_set(set + kGroupWarps));
      compute(s, cells_.of_set(set), now);
    }
    queue_.push(s + 1);
    device::sync_block();
    if (kLoadsEarly) hold_inputs(s + 1, inputs);
    for_row_tiles(cells_.rows, [&](int first, auto count) {
      w_.template multiply<decltype(count)::value>(
          dgates(s), first, [&](int row_tile, int unit_tile, const float (&d)[4]) {
            scatter_.send(s + 1, unit_tile, row_tile, d);
          });
    });
    // Here nothing waits for this warp: all wait for the other blocks.
    if (!kLoadsEarly) hold_inputs(s + 1, inputs);
    queue_.look_up(steps_, s + 2);
  }

  FASTLSTM_DEVICE float& dh(CellPlace at) const { return of_cell<float>(layout_.dh, at); }
  FASTLSTM_DEVICE float& carry(CellPlace at) const { return of_cell<float>(layout_.carry, at); }
  FASTLSTM_DEVICE float& state(CellPlace at) const { return of_cell<float>(layout_.state, at); }
  // What W_hh saw, gates of a unit adjacent. Two buffers: warps may still multiply one while the
  // next is made.
  FASTLSTM_DEVICE OperandRows<S> dgates(int64_t s) const {
    return {shared_ + layout_.tiles + s % 2 * layout_.tile_bytes, layout_.row_bytes};
  }

  FASTLSTM_DEVICE void load_gradients(CellPlace at) const {
    const bool in_batch = cells_.is_in_batch(at);
    typename Steps::Gradients begin = {};
    if (in_batch) begin = steps_.load_gradients(cells_.place(at));
    dh(at) = begin.dh.v;
    if (kTraits.has_carry) carry(at) = begin.carry.v;
    if (!C::kTraits.bwd_reads_state) return;
    state(at) = in_batch ? steps_.load_last_state(cells_.row(at), cells_.unit(at)).v : 0;
  }
  FASTLSTM_DEVICE void store_gradients(CellPlace at) const {
    if (!cells_.is_in_batch(at)) return;
    steps_.store_gradients(cells_.place(at), {{dh(at)}, {kTraits.has_carry ? carry(at) : 0}});
  }

  FASTLSTM_DEVICE Inputs load_inputs(int64_t s, CellPlace at) const {
    if (!cells_.exists(at)) return {};
    return steps_.load_inputs(s, queue_.at(s, at.row), cells_.unit(at));
  }
  FASTLSTM_DEVICE void hold_inputs(int64_t s, Inputs (&inputs)[kHeld]) const {
    FASTLSTM_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const int set = device::warp() + i * kGroupWarps;
      if (set < cells_.sets()) inputs[i] = load_inputs(s, cells_.of_set(set));
    }
  }

  // What W_hh passes on from step s - 1, if the row had that.
  FASTLSTM_DEVICE void take_dh(int64_t s, CellPlace at) const {
    if (queue_.at(s - 1, at.row).compact >= 0) dh(at) = scatter_.sum(s, at.row, at.unit);
  }

  FASTLSTM_DEVICE void compute(int64_t s, CellPlace at, const Inputs& in) const {
    if (s > 0) take_dh(s, at);
    V state_now = {};
    if constexpr (C::kTraits.bwd_reads_state) {
      state_now = {state(at)};
      state(at) = in.state_before.v;
    }
    const BwdRow& now = queue_.at(s, at.row);
    if (now.compact < 0 || !cells_.exists(at)) return;
    const bool cut_after = s > 0 && queue_.at(s - 1, at.row).cut;
    const V zero = V::broadcast(0);
    const V dh_now = V{cut_after ? 0 : dh(at)} + load(&in.dy);
    V carry_now = V{in.dc};
    if (kTraits.has_carry) carry_now = V{cut_after ? 0 : carry(at)} + carry_now;
    V reserve[kReserve ? kReserve : 1], of_gates[kDgates];
    in.get_reserve(reserve);
    C::bwd(reserve, state_now, now.cut ? zero : in.state_before, dh_now, of_gates, carry_now);
    if (kTraits.has_carry) carry(at) = carry_now.v;

    float seen[kGates];  // by W_hh
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g) seen[g] = of_gates[g].v;
    dgates(s).set(at.row, at.unit * kGates, seen);
    steps_.store_dgates(now, cells_.unit(at), of_gates);
  }

  const SequenceBwd<S>& p_;
  const SequenceBwdDirection<S>& d_;
  const GroupCells<kUnits> cells_;
  char* const shared_;
  const BwdLayout layout_;
  const Steps steps_;
  RowQueue<Steps> queue_;
  Scatter<S, kUnits> scatter_;
  BwdMatrix<S, kGates, kUnits, Scatter<S, kUnits>::kExchange> w_;
};

}  // namespace cuda
}  // namespace fastlstm
