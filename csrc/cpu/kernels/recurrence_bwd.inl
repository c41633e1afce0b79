// Backward recurrence of one layer: the dh / dc chain and dgates, nothing else. For every step,
// last first, dh = dy + dgates of the step after * W_hh in the register tile, then the cell's
// backward on the accumulators: dh never goes to memory. The weight gradients are one product over
// all steps afterwards.
#pragma once

#include "barrier.inl"
#include "recurrence_fwd.inl"
#include "tile.inl"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

template <class V>
struct BwdStep {
  using S = typename V::scalar;
  const Packed<V>* dgates_next[8];
  const S* reserve[8];
  const S* state[8];
  const S* state_prev[8];
  const S* dy[8];          // null: zero
  const S* dc_seq[8];      // null: zero
  const S* dh_n[8];        // null: zero
  const S* carry_next[8];  // carry, or zeros after a reset
  S* carry[8];
  S* dgates[8];
};

// One tile: MR rows, NV vectors of hidden units from unit j0 on, K of the rows of W_hh. All but the
// last block of rows leave their sums in `partial`; the last goes on to the cell.
template <template <class> class Cell, class V, int MR, int NV>
__attribute__((noinline)) void bwd_tile(const BwdStep<V>& step, const Packed<V>* w_hh_packed,
                                        int64_t K, typename V::scalar* partial, bool first_block,
                                        bool last_block, int64_t H, int64_t j0) {
  using C = Cell<V>;
  constexpr CellTraits traits = C::kTraits;
  constexpr int R = traits.reserve, Q = traits.dgates;
  if (last_block) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const int64_t j = j0 + v * V::kLanes;
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) prefetch(step.reserve[r] + i * H + j);
        if constexpr (C::kTraits.bwd_reads_prev_state) prefetch(step.state_prev[r] + j);
        prefetch(step.dy[r] + j);
      }
    }
  }
  V dh[MR][NV];
  multiply(RowsOfA<Packed<V>, MR>(step.dgates_next), PackedB<V, NV>{w_hh_packed}, K, dh);
  add_tile(dh, partial, first_block);
  if (!last_block) return;
#pragma GCC unroll 1
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 1
    for (int v = 0; v < NV; ++v) {
      const int64_t j = j0 + v * V::kLanes;
      const int units = H - j < V::kLanes ? static_cast<int>(H - j) : V::kLanes;
      V dh_r = V::load(partial + (r * NV + v) * V::kLanes);
      if (step.dy[r]) dh_r = dh_r + V::load(step.dy[r] + j, units);
      if (step.dh_n[r]) dh_r = dh_r + V::load(step.dh_n[r] + j, units);
      const V zero = V::broadcast(0);
      V reserve[R > 0 ? R : 1], dgates[Q], state = zero, state_prev = zero, carry = zero;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) reserve[i] = V::load(step.reserve[r] + i * H + j, units);
      if constexpr (C::kTraits.bwd_reads_state) state = V::load(step.state[r] + j, units);
      if constexpr (C::kTraits.bwd_reads_prev_state)
        state_prev = V::load(step.state_prev[r] + j, units);
      if constexpr (traits.has_carry) carry = V::load(step.carry_next[r] + j, units);
      if constexpr (traits.has_c) {
        if (step.dc_seq[r]) carry = carry + V::load(step.dc_seq[r] + j, units);
      }
      C::bwd(reserve, state, state_prev, dh_r, dgates, carry);
#pragma GCC unroll 8
      for (int i = 0; i < Q; ++i) dgates[i].store(step.dgates[r] + i * H + j, units);
      if constexpr (traits.has_carry) carry.store(step.carry[r] + j, units);
    }
  }
}

template <class V, int MR>
FASTLSTM_INLINE void bwd_step_rows(const RecurrenceBwd<typename V::scalar>& p,
                                   const BwdDirection<typename V::scalar>& d, int64_t t,
                                   const StepOperands<V>& operands, int64_t i, int64_t first_row,
                                   int64_t row_step, int64_t k0, BwdStep<V>& step) {
  const int64_t base = p.step_begin[d.t_begin];
  auto grad = [&](const auto* g, bool compact, int64_t t_stride, int64_t n_stride, int64_t k,
                  int64_t batch_row) {
    return !g ? g : compact ? g + (k - base) * n_stride : g + t * t_stride + batch_row * n_stride;
  };
  for (int r = 0; r < MR; ++r) {
    const int64_t n = first_row + r * row_step, k = p.step_begin[t] + n;
    const int64_t batch_row = p.batch_row[n], next = d.next[k];
    step.dgates[r] = d.dgates + (k - base) * p.dgates_stride;
    step.dgates_next[r] = next < 0
                              ? operands.zeros(p.zeros)
                              : operands.row(i + r, d.dgates + (next - base) * p.dgates_stride, k0);
    step.reserve[r] = d.reserve + (k - base) * p.reserve_stride;
    step.state[r] = d.state + p.row[k] * p.state_stride;
    step.state_prev[r] =
        d.prev_row[k] == p.zero_row ? p.zeros : d.state + d.prev_row[k] * p.state_stride;
    step.dy[r] = grad(d.dy, p.dy_compact, p.dy_t_stride, p.dy_n_stride, k, batch_row);
    step.dc_seq[r] =
        grad(d.dc_seq, p.dc_seq_compact, p.dc_seq_t_stride, p.dc_seq_n_stride, k, batch_row);
    step.dh_n[r] = next == kSequenceEnds && d.dh_n ? d.dh_n + batch_row * p.H : nullptr;
    step.carry[r] = d.carry + batch_row * p.H;
    step.carry_next[r] = next == kSequenceCut ? p.zeros : step.carry[r];
  }
}

template <class V>
void convert_dgates_next(const RecurrenceBwd<typename V::scalar>& p,
                         const BwdDirection<typename V::scalar>& d, int64_t t, const Share& share,
                         int64_t count, StepOperands<V>& operands) {
  const int64_t base = p.step_begin[d.t_begin];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t next = d.next[p.step_begin[t] + share.row_begin + i * share.row_step];
    if (next >= 0) operands.convert(i, d.dgates + (next - base) * p.dgates_stride, p.K);
  }
}

template <template <class> class Cell, class V>
void recurrence_bwd(const RecurrenceBwd<typename V::scalar>& p, const Share& share,
                    Barrier* barrier) {
  using S = typename V::scalar;
  const BwdDirection<S>& d = p.direction[share.direction];
  const int64_t H = p.H;
  const UnitPanels<V, kPanelVectors> panels(H);
  S partial[kBlockRows * kPanelVectors * V::kLanes];
  StepOperands<V> operands(p.workspace, share.thread, p.N, p.K);
  for (int64_t s = 0; s < d.t_end - d.t_begin; ++s) {
    const int64_t t = d.reverse ? d.t_begin + s : d.t_end - 1 - s;
    const int64_t count = share_rows(p.step_begin, t, share);
    // At the end of the longest sequences there are no dgates to multiply, and behind it no rows.
    const int64_t K_all = count == 0 || d.next[p.step_begin[t]] == kSequenceEnds ? 0 : p.K;
    if constexpr (StepOperands<V>::kConverts) {
      if (K_all > 0) convert_dgates_next(p, d, t, share, count, operands);
    }
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      const int64_t vector = panels.begin(panel);
      if (vector < share.vector_begin || vector >= share.vector_end) continue;
      const int vectors = static_cast<int>(panels.begin(panel + 1) - vector);
      const Packed<V>* w_hh_panel =
          as_packed<V>(d.w_hh_packed) + vector * V::kLanes * depth_of<V>(p.K);
      for (int64_t i0 = 0; i0 < count; i0 += kBlockRows) {
        const int64_t rows = count - i0 < kBlockRows ? count - i0 : kBlockRows;
        int64_t k0 = 0;
        do {
          const int64_t K = K_all - k0 < kBlockK<S> ? K_all - k0 : kBlockK<S>;
          for_each_tile<V::kMaxRows>(rows, [&](int64_t i, auto count_of_rows) {
            constexpr int MR = decltype(count_of_rows)::value;
            BwdStep<V> step;
            bwd_step_rows<V, MR>(p, d, t, operands, i0 + i,
                                 share.row_begin + (i0 + i) * share.row_step, share.row_step, k0,
                                 step);
            with_constant<kPanelVectors>(vectors, [&](auto nv) {
              bwd_tile<Cell, V, MR, nv.value>(step,
                                              w_hh_panel + depth_of<V>(k0) * nv.value * V::kLanes,
                                              depth_of<V>(K), partial + i * nv.value * V::kLanes,
                                              k0 == 0, k0 + K == K_all, H, vector * V::kLanes);
            });
          });
          k0 += kBlockK<S>;
        } while (k0 < K_all);
      }
    }
    wait_for_group(barrier, share.group_size);
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
