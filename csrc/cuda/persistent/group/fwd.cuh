// Forward of group.h. A step: the products of the block's rows of W_hh with h of all units; a
// barrier; the cells of the block; what they make of h, to all blocks.
#pragma once

#include "../rows.cuh"
#include "cells.cuh"
#include "gather.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kUnits, template <class> class Gather>
class GroupFwdJob {
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kBiases = kGates + kTraits.separate;
  using Matrix = FwdMatrix<S, kGates, kUnits>;
  using Number = decltype(Operand<S>::of(0.0f));

 public:
  using Params = GroupFwd<S>;

  FASTLSTM_DEVICE GroupFwdJob(const Params& p, const GroupPlace& here, int64_t job)
      : p_(p.sequence),
        d_(p_.direction[job % p_.directions]),
        cells_(p_.rows, p.plan, here.member, job / p_.directions),
        shared_(device::shared_memory<char>()),
        layout_(fwd_layout(kTraits, Operand<S>::kKind, Gather<S>::kExchange, cells_.H, p.plan)),
        sums_(shared_ + layout_.partials, cells_.rows, layout_.partial_stride),
        steps_(p_, d_, cells_.first_row),
        queue_(shared_ + layout_.queue, cells_.first_row, cells_.rows),
        gather_(p, layout_, shared_, job),
        w_(shared_, cells_.H) {}

  FASTLSTM_DEVICE void operator()() {
    w_.load(MatrixRows<S>(d_.w_hh, p_.w_hh_stride, cells_.H), cells_.H, cells_.first_unit);
    for (int tile = 0; tile < (Gather<S>::kExchange == Exchange::kCluster ? 2 : 1); ++tile)
      gather_.rows(tile).clear(cells_.rows);
    queue_.look_up(steps_, 0);
    queue_.push(0);
    queue_.look_up(steps_, 1);
    device::sync_block();
    load_bias();
    load_h();
    cells_.for_each([&](CellPlace at) {
      load_states(at);
      fetch_igates(0, at);
    });
    device::cp_async_commit();
    device::sync_block();
    gather_.start();
    for (int64_t s = 0; s < steps_.count(); ++s) step(s);
  }

 private:
  using Steps = FwdSteps<Cell, S>;
  using Outputs = typename Steps::Outputs;

  FASTLSTM_DEVICE void step(int64_t s) {
    if (s > 0) gather_.receive(s);
    for_row_tiles(cells_.rows, [&](int first, auto count) {
      w_.template multiply<decltype(count)::value>(
          gather_.rows(s), first, [&](int row_tile, int w_row, const float (&d)[4]) {
            sums_.set(Matrix::warp_k(), row_tile, w_row, d);
          });
    });
    queue_.push(s + 1);
    device::sync_block();
    device::cp_async_wait<0>();
    const bool sends = s + 1 < steps_.count();
    for (int i = device::warp(); i < cells_.sets(); i += kGroupWarps) {
      const CellPlace at = cells_.of_set(i);
      const bool has_step = queue_.at(s, at.row).place >= 0 && cells_.exists(at);
      Outputs made = {};
      if (has_step) made = compute(s, at);
      // What others wait for goes first.
      if (sends) {
        device::sync_warp();
        send(s + 1, i);
      }
      if (has_step) keep(s, at, made);
      if (sends) fetch_igates(s + 1, at);
    }
    device::cp_async_commit();
    // Here nothing waits for this warp: all wait for the other blocks.
    queue_.look_up(steps_, s + 2);
  }

  FASTLSTM_DEVICE float& bias(int g, int unit) const {
    return reinterpret_cast<float*>(shared_ + layout_.bias)[g * kUnits + unit];
  }
  FASTLSTM_DEVICE float& igate(int g, CellPlace at) const {
    return of_cell<float>(layout_.igates + 4 * g * cells_.rows * kUnits, at);
  }
  FASTLSTM_DEVICE float& state(CellPlace at) const { return of_cell<float>(layout_.state, at); }
  // h on its way to the other blocks. Where a row has no step it stays, and is sent again.
  FASTLSTM_DEVICE Number& staged(CellPlace at) const {
    return of_cell<Number>(layout_.staging, at);
  }

  FASTLSTM_DEVICE void load_bias() const {
    for (int i = static_cast<int>(threadIdx.x); i < kBiases * kUnits; i += kGroupThreads) {
      const int g = i / kUnits, unit = i % kUnits;
      const int j = cells_.first_unit + unit;
      bias(g, unit) = d_.bias && j < cells_.H ? d_.bias[g * cells_.H + j] : 0;
    }
  }
  // That every block sees of the initial h needs no exchange.
  FASTLSTM_DEVICE void load_h() const {
    for (int row = device::warp(); row < cells_.rows && cells_.first_row + row < p_.rows.N;
         row += kGroupWarps) {
      for (int j = device::lane(); j < cells_.H; j += 32) {
        const float numbers[1] = {load(d_.h_begin + (cells_.first_row + row) * cells_.H + j).v};
        gather_.rows(0).set(row, j, numbers);
      }
    }
  }
  FASTLSTM_DEVICE void load_states(CellPlace at) const {
    staged(at) = Operand<S>::of(0.0f);
    state(at) = 0;
    if (!cells_.is_in_batch(at)) return;
    V first;
    staged(at) = Operand<S>::of(steps_.load_states(cells_.place(at), first).v);
    state(at) = first.v;
  }
  // Into what this thread reads itself: no barrier is needed.
  FASTLSTM_DEVICE void fetch_igates(int64_t s, CellPlace at) const {
    const int64_t from = queue_.at(s, at.row).igates;
    if (from < 0 || !cells_.exists(at)) return;
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g)
      device::cp_async_4(&igate(g, at), steps_.igate(from, g, cells_.unit(at)));
  }

  // Stages h as W_hh is to see it next.
  FASTLSTM_DEVICE Outputs compute(int64_t s, CellPlace at) const {
    V igates[kGates], hgates[kGates], biases[kBiases];
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g) {
      igates[g] = {igate(g, at)};
      hgates[g] = {sums_.template sum<Matrix::kSplit.warps_k>(at.row, g * kUnits + at.unit)};
    }
    FASTLSTM_UNROLL
    for (int g = 0; g < kBiases; ++g) biases[g] = {bias(g, at.unit)};
    Outputs made;
    made.state = {state(at)};
    made.h = C::fwd(igates, hgates, biases, made.state, made.reserve);
    if (!kTraits.has_c) made.state = made.h;
    const bool cut = queue_.at(s + 1, at.row).cut;
    staged(at) = Operand<S>::of(cut ? 0 : made.h.v);
    state(at) = cut ? 0 : made.state.v;
    return made;
  }
  // In the tensors of the layer.
  FASTLSTM_DEVICE void keep(int64_t s, CellPlace at, const Outputs& made) const {
    steps_.store_outputs(queue_.at(s, at.row), cells_.unit(at), made);
    const FwdRow& next = queue_.at(s + 1, at.row);
    if (next.place < 0) {
      const V h = next.cut ? V::broadcast(0) : made.h;
      steps_.store_states(cells_.place(at), h, {state(at)});
    }
  }

  // What the i-th set of cells has staged, 16 bytes a lane: the lanes that are left share
  // the receivers.
  FASTLSTM_DEVICE void send(int64_t s, int i) const {
    constexpr unsigned kRowChunks = kMmaRows / kPerChunk<S>, kChunks = 2 * kRowChunks;
    const unsigned chunk = device::lane() % kChunks, part = device::lane() / kChunks;
    const CellPlace from = cells_.of_set(i, chunk * kPerChunk<S>);
    gather_.send(s, from.row, cells_.unit(from) / kPerChunk<S>,
                 *reinterpret_cast<const Word4*>(&staged(from)), part, 32 / kChunks);
  }

  const SequenceFwd<S>& p_;
  const SequenceFwdDirection<S>& d_;
  const GroupCells<kUnits> cells_;
  char* const shared_;
  const FwdLayout layout_;
  const PartialSums sums_;
  const Steps steps_;
  RowQueue<Steps> queue_;
  const Gather<S> gather_;
  Matrix w_;
};

}  // namespace cuda
}  // namespace fastlstm
