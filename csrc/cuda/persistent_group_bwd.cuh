// Backward of persistent_group.h. A step: the cells of the block, with what its units get of dh
// from all blocks; a barrier; the products of its rows of W_hh with their dgates, to the blocks
// that own the units.
#pragma once

#include "persistent_cells.cuh"
#include "persistent_rows.cuh"
#include "persistent_scatter.cuh"
#include "step.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kUnits, template <class, int> class Scatter>
class GroupBwdJob {
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kDgates = kTraits.dgates, kReserve = kTraits.reserve;
  static constexpr bool kReadsStates = C::kBwdReadsState || C::kBwdReadsPrevState;

 public:
  using Params = GroupBwd<S>;

  FASTLSTM_DEVICE GroupBwdJob(const Params& p, const GroupPlace& here, int64_t job)
      : p_(p.sequence),
        d_(p_.direction[job % p_.directions]),
        H_(static_cast<int>(p_.rows.H)),
        rows_(p.plan.rows),
        first_unit_(here.member * kUnits),
        first_row_(job / p_.directions * rows_),
        shared_(device::shared_memory<char>()),
        layout_(bwd_layout(kTraits, Operand<S>::kKind, Scatter<S, kUnits>::kExchange, p.plan)),
        queue_(shared_ + layout_.queue, rows_),
        steps_(p_, d_, first_row_),
        scatter_(p, layout_, shared_, here, job),
        w_(shared_, layout_.m_tiles) {}

  FASTLSTM_DEVICE void operator()() {
    const int units = first_unit_ < H_ ? H_ - first_unit_ : 0;
    w_.load(MatrixRows<S>(d_.w_hh_t + (units > 0 ? first_unit_ * kGates : 0), int64_t{H_} * kGates,
                          (units < kUnits ? units : kUnits) * kGates),
            H_);
    dgates(0).clear(rows_);
    dgates(1).clear(rows_);
    BwdRow coming{};
    if (queue_.is_mine()) {
      queue_.push(0, look_up(0));
      coming = look_up(1);
    }
    device::sync_block();
    for_each_cells([&](CellPlace at) { load_gradients(at); });
    Inputs inputs[kHeld];
    hold_inputs(0, inputs);
    scatter_.start();
    for (int64_t s = 0; s < steps_.count(); ++s) step(s, coming, inputs);
    if (steps_.count() > 0) {
      scatter_.receive(steps_.count());
      for_each_cells([&](CellPlace at) { take_dh(steps_.count(), at); });
    }
    for_each_cells([&](CellPlace at) { store_gradients(at); });
    scatter_.finish();
  }

 private:
  // Of a step. As they lie in memory, as long as they only wait.
  struct Inputs {
    S reserve[kReserve ? kReserve : 1], dy;
    float dc;
    V state_before;
  };
  // An exchange through L2 takes long enough to load them meanwhile, and registers for itself.
  static constexpr bool kLoadsEarly = Scatter<S, kUnits>::kExchange == Exchange::kCluster;
  // Of the cells of a warp, the first ones, whose inputs are loaded ahead: early those of 8 rows.
  static constexpr int kHeld =
      kLoadsEarly ? ceil_div(kRowTile / 2 * kUnits / kMmaRows, kGroupWarps) : 1;

  // coming and inputs: of step s + 1 and of step s -> of one step more.
  FASTLSTM_DEVICE void step(int64_t s, BwdRow& coming, Inputs (&inputs)[kHeld]) {
    if (s > 0) scatter_.receive(s);
    const int cells = cell_count<kUnits>(rows_);
    // Those of more rows are loaded one cell ahead.
    Inputs next = {};
    const int first = device::warp() + kHeld * kGroupWarps;
    if (first < cells) next = load_inputs(s, cell_place<kUnits>(first));
    FASTLSTM_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const int cell = device::warp() + i * kGroupWarps;
      if (cell < cells) compute(s, cell_place<kUnits>(cell), inputs[i]);
    }
    for (int cell = first; cell < cells; cell += kGroupWarps) {
      const Inputs now = next;
      if (cell + kGroupWarps < cells) next = load_inputs(s, cell_place<kUnits>(cell + kGroupWarps));
      compute(s, cell_place<kUnits>(cell), now);
    }
    if (queue_.is_mine()) queue_.push(s + 1, coming);
    device::sync_block();
    if (kLoadsEarly) hold_inputs(s + 1, inputs);
    for_row_tiles(rows_, [&](int first, auto count) {
      w_.template multiply<decltype(count)::value>(
          dgates(s), first, [&](int row_tile, int unit_tile, const float (&d)[4]) {
            scatter_.send(s + 1, unit_tile, row_tile, d);
          });
    });
    // Here nothing waits for this warp: all wait for the other blocks.
    if (!kLoadsEarly) hold_inputs(s + 1, inputs);
    if (queue_.is_mine()) coming = look_up(s + 2);
  }

  template <class F>
  FASTLSTM_DEVICE void for_each_cells(F&& f) const {
    for (int i = device::warp(); i < cell_count<kUnits>(rows_); i += kGroupWarps)
      f(cell_place<kUnits>(i));
  }
  FASTLSTM_DEVICE BwdRow look_up(int64_t s) const {
    return steps_.look_up(s, first_row_ + threadIdx.x);
  }
  FASTLSTM_DEVICE bool exists(CellPlace at) const { return first_unit_ + at.unit < H_; }
  FASTLSTM_DEVICE bool is_in_batch(CellPlace at) const {
    return first_row_ + at.row < p_.rows.N && exists(at);
  }
  // Of a tensor [N, H].
  FASTLSTM_DEVICE int64_t place(CellPlace at) const {
    return (first_row_ + at.row) * H_ + first_unit_ + at.unit;
  }
  FASTLSTM_DEVICE float& shared(int offset, CellPlace at) const {
    return reinterpret_cast<float*>(shared_ + offset)[at.index];
  }
  FASTLSTM_DEVICE float& dh(CellPlace at) const { return shared(layout_.dh, at); }
  FASTLSTM_DEVICE float& carry(CellPlace at) const { return shared(layout_.carry, at); }
  FASTLSTM_DEVICE float& state(CellPlace at) const { return shared(layout_.state, at); }
  // What W_hh saw, gates of a unit adjacent. Two buffers: warps may still multiply one while the
  // next is made.
  FASTLSTM_DEVICE OperandRows<S> dgates(int64_t s) const {
    return {shared_ + layout_.tiles + s % 2 * layout_.tile_bytes, layout_.row_bytes};
  }

  FASTLSTM_DEVICE void load_gradients(CellPlace at) const {
    const bool in_batch = is_in_batch(at);
    dh(at) = in_batch ? d_.dh[place(at)] : 0;
    if (kTraits.has_carry) carry(at) = in_batch && d_.carry ? d_.carry[place(at)] : 0;
    if (!C::kBwdReadsState) return;
    const int64_t last = in_batch ? steps_.last_place(first_row_ + at.row) : -1;
    state(at) = last >= 0 ? load_state(false, last, at).v : 0;
  }
  FASTLSTM_DEVICE void store_gradients(CellPlace at) const {
    if (!is_in_batch(at)) return;
    d_.dh[place(at)] = dh(at);
    if (kTraits.has_carry && d_.carry) d_.carry[place(at)] = carry(at);
  }
  FASTLSTM_DEVICE V load_state(bool initial, int64_t row, CellPlace at) const {
    const int unit = first_unit_ + at.unit;
    if constexpr (kTraits.has_c) {
      return {(initial ? d_.c_initial : d_.c)[row * p_.c_stride + unit]};
    } else {
      return load((initial ? d_.h_initial : d_.h) + row * p_.h_stride + unit);
    }
  }

  FASTLSTM_DEVICE Inputs load_inputs(int64_t s, CellPlace at) const {
    Inputs in = {};
    if (!exists(at)) return in;
    const BwdRow& now = queue_.at(s, at.row);
    if (kReadsStates && now.before >= 0)
      in.state_before = load_state(now.before_is_initial, now.before, at);
    if (now.compact < 0) return in;
    const int64_t t = steps_.time(s);
    const int unit = first_unit_ + at.unit;
    FASTLSTM_UNROLL
    for (int g = 0; g < kReserve; ++g)
      in.reserve[g] = d_.reserve[(now.compact * kReserve + g) * H_ + unit];
    if (d_.dy) in.dy = d_.dy[t * p_.dy_t_stride + now.grad * p_.dy_n_stride + unit];
    if (d_.dc_seq) in.dc = d_.dc_seq[t * p_.dc_seq_t_stride + now.grad * p_.dc_seq_n_stride + unit];
    return in;
  }
  FASTLSTM_DEVICE void hold_inputs(int64_t s, Inputs (&inputs)[kHeld]) const {
    FASTLSTM_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const int cell = device::warp() + i * kGroupWarps;
      if (cell < cell_count<kUnits>(rows_)) inputs[i] = load_inputs(s, cell_place<kUnits>(cell));
    }
  }

  // What W_hh passes on from step s - 1, if the row had that.
  FASTLSTM_DEVICE void take_dh(int64_t s, CellPlace at) const {
    if (queue_.at(s - 1, at.row).compact >= 0) dh(at) = scatter_.sum(s, at.row, at.unit);
  }

  FASTLSTM_DEVICE void compute(int64_t s, CellPlace at, const Inputs& in) const {
    if (s > 0) take_dh(s, at);
    V state_now = {};
    if constexpr (C::kBwdReadsState) {
      state_now = {state(at)};
      state(at) = in.state_before.v;
    }
    const BwdRow& now = queue_.at(s, at.row);
    if (now.compact < 0 || !exists(at)) return;
    const bool cut_after = s > 0 && queue_.at(s - 1, at.row).cut;
    const V zero = V::broadcast(0);
    const V dh_now = V{cut_after ? 0 : dh(at)} + load(&in.dy);
    V carry_now = V{in.dc};
    if (kTraits.has_carry) carry_now = V{cut_after ? 0 : carry(at)} + carry_now;
    V reserve[kReserve ? kReserve : 1], of_gates[kDgates];
    FASTLSTM_UNROLL
    for (int g = 0; g < kReserve; ++g) reserve[g] = load(&in.reserve[g]);
    C::bwd(reserve, state_now, now.cut ? zero : in.state_before, dh_now, of_gates, carry_now);
    if (kTraits.has_carry) carry(at) = carry_now.v;

    float seen[kGates];  // by W_hh
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g) seen[g] = of_gates[g].v;
    dgates(s).set(at.row, at.unit * kGates, seen);
    FASTLSTM_UNROLL
    for (int g = 0; g < kDgates; ++g)
      store(d_.dgates + (now.compact * kDgates + g) * H_ + first_unit_ + at.unit, of_gates[g]);
  }

  const SequenceBwd<S>& p_;
  const SequenceBwdDirection<S>& d_;
  const int H_, rows_, first_unit_;
  const int64_t first_row_;
  char* const shared_;
  const BwdLayout layout_;
  const RowQueue<BwdRow> queue_;
  const BwdSteps<S> steps_;
  Scatter<S, kUnits> scatter_;
  BwdMatrix<S, kGates, kUnits, Scatter<S, kUnits>::kExchange> w_;
};

}  // namespace cuda
}  // namespace fastlstm
