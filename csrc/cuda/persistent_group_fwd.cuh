// Forward of persistent_group.h. A step: the products of the block's rows of W_hh with h of all
// units; a barrier; the cells of the block; what they make of h, to all blocks.
#pragma once

#include "persistent_cells.cuh"
#include "persistent_gather.cuh"
#include "persistent_rows.cuh"
#include "step.cuh"

namespace fastlstm {
namespace cuda {

template <template <class> class Cell, class S, int kUnits, template <class> class Gather>
class GroupFwdJob {
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kGates = C::kGates, kBiases = kGates + kTraits.separate;
  static constexpr int kReserve = kTraits.reserve;
  using Matrix = FwdMatrix<S, kGates, kUnits>;
  using Number = decltype(Operand<S>::of(0.0f));

 public:
  using Params = GroupFwd<S>;
  FASTLSTM_DEVICE GroupFwdJob(const Params& p, const GroupPlace& here, int64_t job)
      : p_(p.sequence),
        d_(p_.direction[job % p_.directions]),
        H_(static_cast<int>(p_.rows.H)),
        rows_(p.plan.rows),
        first_unit_(here.member * kUnits),
        first_row_(job / p_.directions * rows_),
        shared_(device::shared_memory<char>()),
        layout_(fwd_layout(kTraits, Operand<S>::kKind, Gather<S>::kExchange, H_, p.plan)),
        sums_(shared_ + layout_.partials, rows_, layout_.partial_stride),
        queue_(shared_ + layout_.queue, rows_),
        steps_(p_, d_, first_row_),
        gather_(p, layout_, shared_, job),
        w_(shared_, H_) {}

  FASTLSTM_DEVICE void operator()() {
    w_.load(MatrixRows<S>(d_.w_hh, p_.w_hh_stride, H_), H_, first_unit_);
    for (int tile = 0; tile < (Gather<S>::kExchange == Exchange::kCluster ? 2 : 1); ++tile)
      gather_.rows(tile).clear(rows_);
    FwdRow coming{};
    if (queue_.is_mine()) {
      queue_.push(0, look_up(0));
      coming = look_up(1);
    }
    device::sync_block();
    load_bias();
    load_h();
    for_each_cells([&](CellPlace at) {
      load_state(at);
      fetch_igates(0, at);
    });
    device::cp_async_commit();
    device::sync_block();
    gather_.start();
    for (int64_t s = 0; s < steps_.count(); ++s) step(s, coming);
  }

 private:
  // coming: of step s + 1 -> of step s + 2.
  FASTLSTM_DEVICE void step(int64_t s, FwdRow& coming) {
    if (s > 0) gather_.receive(s);
    for_row_tiles(rows_, [&](int first, auto count) {
      w_.template multiply<decltype(count)::value>(
          gather_.rows(s), first, [&](int row_tile, int w_row, const float (&d)[4]) {
            sums_.set(Matrix::warp_k(), row_tile, w_row, d);
          });
    });
    if (queue_.is_mine()) queue_.push(s + 1, coming);
    device::sync_block();
    device::cp_async_wait<0>();
    const bool sends = s + 1 < steps_.count();
    for (int i = device::warp(); i < cell_count<kUnits>(rows_); i += kGroupWarps) {
      const CellPlace at = cell_place<kUnits>(i);
      const CellOutput made = compute(s, at);
      // What others wait for goes first.
      if (sends) {
        device::sync_warp();
        send(s + 1, i);
      }
      keep(s, at, made);
      if (sends) fetch_igates(s + 1, at);
    }
    device::cp_async_commit();
    // Here nothing waits for this warp: all wait for the other blocks.
    if (queue_.is_mine()) coming = look_up(s + 2);
  }

  template <class F>
  FASTLSTM_DEVICE void for_each_cells(F&& f) const {
    for (int i = device::warp(); i < cell_count<kUnits>(rows_); i += kGroupWarps)
      f(cell_place<kUnits>(i));
  }
  FASTLSTM_DEVICE FwdRow look_up(int64_t s) const {
    return steps_.look_up(s, first_row_ + threadIdx.x);
  }
  FASTLSTM_DEVICE bool exists(CellPlace at) const { return first_unit_ + at.unit < H_; }
  // Of a tensor [N, H].
  FASTLSTM_DEVICE int64_t place(CellPlace at) const {
    return (first_row_ + at.row) * H_ + first_unit_ + at.unit;
  }
  template <class T>
  FASTLSTM_DEVICE T* shared(int offset) const {
    return reinterpret_cast<T*>(shared_ + offset);
  }
  FASTLSTM_DEVICE float& bias(int g, int unit) const {
    return shared<float>(layout_.bias)[g * kUnits + unit];
  }
  FASTLSTM_DEVICE float& igate(int g, CellPlace at) const {
    return shared<float>(layout_.igates)[g * rows_ * kUnits + at.index];
  }
  FASTLSTM_DEVICE float& state(CellPlace at) const {
    return shared<float>(layout_.state)[at.index];
  }
  // h on its way to the other blocks. Where a row has no step it stays, and is sent again.
  FASTLSTM_DEVICE Number& staged(CellPlace at) const {
    return shared<Number>(layout_.staging)[at.index];
  }

  FASTLSTM_DEVICE void load_bias() const {
    for (int i = static_cast<int>(threadIdx.x); i < kBiases * kUnits; i += kGroupThreads) {
      const int g = i / kUnits, unit = i % kUnits;
      bias(g, unit) = d_.bias && first_unit_ + unit < H_ ? d_.bias[g * H_ + first_unit_ + unit] : 0;
    }
  }
  // That every block sees of the initial h needs no exchange.
  FASTLSTM_DEVICE void load_h() const {
    for (int row = device::warp(); row < rows_ && first_row_ + row < p_.rows.N;
         row += kGroupWarps) {
      for (int j = device::lane(); j < H_; j += 32) {
        const float numbers[1] = {load(d_.h_begin + (first_row_ + row) * H_ + j).v};
        gather_.rows(0).set(row, j, numbers);
      }
    }
  }
  FASTLSTM_DEVICE void load_state(CellPlace at) const {
    staged(at) = Operand<S>::of(0.0f);
    state(at) = 0;
    if (first_row_ + at.row >= p_.rows.N || !exists(at)) return;
    const V h = load(d_.h_begin + place(at));
    store(d_.h_end + place(at), h);  // of rows without a step
    staged(at) = Operand<S>::of(h.v);
    state(at) = d_.state ? d_.state[place(at)] : h.v;
  }
  // Into what this thread reads itself: no barrier is needed.
  FASTLSTM_DEVICE void fetch_igates(int64_t s, CellPlace at) const {
    const int64_t from = queue_.at(s, at.row).igates;
    if (from < 0 || !exists(at)) return;
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g)
      device::cp_async_4(&igate(g, at),
                         d_.igates + (from * kGates + g) * H_ + first_unit_ + at.unit);
  }

  // Of a step.
  struct CellOutput {
    bool any;
    V h, state, reserve[kReserve ? kReserve : 1];
  };
  // Makes it, and stages h as W_hh is to see it next.
  FASTLSTM_DEVICE CellOutput compute(int64_t s, CellPlace at) const {
    CellOutput made = {};
    made.any = queue_.at(s, at.row).place >= 0 && exists(at);
    if (!made.any) return made;
    V igates[kGates], hgates[kGates], biases[kBiases];
    FASTLSTM_UNROLL
    for (int g = 0; g < kGates; ++g) {
      igates[g] = {igate(g, at)};
      hgates[g] = {sums_.template sum<Matrix::kSplit.warps_k>(at.row, g * kUnits + at.unit)};
    }
    FASTLSTM_UNROLL
    for (int g = 0; g < kBiases; ++g) biases[g] = {bias(g, at.unit)};
    made.state = {state(at)};
    made.h = C::fwd(igates, hgates, biases, made.state, made.reserve);
    if (!kTraits.has_c) made.state = made.h;
    const bool cut = queue_.at(s + 1, at.row).cut;
    staged(at) = Operand<S>::of(cut ? 0 : made.h.v);
    state(at) = cut ? 0 : made.state.v;
    return made;
  }
  // In the tensors of the layer.
  FASTLSTM_DEVICE void keep(int64_t s, CellPlace at, const CellOutput& made) const {
    if (!made.any) return;
    const FwdRow &now = queue_.at(s, at.row), &next = queue_.at(s + 1, at.row);
    const int unit = first_unit_ + at.unit;
    store(d_.h + now.place * p_.h_stride + unit, made.h);
    if (d_.c) d_.c[now.place * p_.c_stride + unit] = made.state.v;
    if (d_.reserve) {
      FASTLSTM_UNROLL
      for (int g = 0; g < kReserve; ++g)
        store(d_.reserve + (now.compact * kReserve + g) * H_ + unit, made.reserve[g]);
    }
    if (next.place < 0) {
      store(d_.h_end + place(at), next.cut ? V::broadcast(0) : made.h);
      if (d_.state) d_.state[place(at)] = state(at);
    }
  }

  // What the i-th cells of this warp have staged, 16 bytes a lane: the lanes that are left share
  // the receivers.
  FASTLSTM_DEVICE void send(int64_t s, int i) const {
    constexpr unsigned kRowChunks = kMmaRows / kPerChunk<S>, kChunks = 2 * kRowChunks;
    const unsigned chunk = device::lane() % kChunks, part = device::lane() / kChunks;
    const CellPlace from = cell_place<kUnits>(i, chunk * kPerChunk<S>);
    gather_.send(s, from.row, (first_unit_ + from.unit) / kPerChunk<S>,
                 *reinterpret_cast<const Word4*>(&staged(from)), part, 32 / kChunks);
  }

  const SequenceFwd<S>& p_;
  const SequenceFwdDirection<S>& d_;
  const int H_, rows_, first_unit_;
  const int64_t first_row_;
  char* const shared_;
  const FwdLayout layout_;
  const PartialSums sums_;
  const RowQueue<FwdRow> queue_;
  const FwdSteps<S> steps_;
  const Gather<S> gather_;
  Matrix w_;
};

}  // namespace cuda
}  // namespace fastlstm
