// Forward recurrence of one layer: for every step, hgates = h_prev W_hh^T in the register tile,
// then the cell on the accumulators, before anything but the result is stored.
#pragma once

#include "barrier.inl"
#include "tile.inl"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// Shape of the forward tile of a cell: as many vectors of units, and as many rows, as fill the
// register file with all gates of each unit.
template <template <class> class Cell, class V>
struct FwdTile {
  static constexpr int kGates = Cell<V>::kGates;
  static constexpr int kUnits = kPanelVectors / kGates;
  static constexpr int kRows = V::kMaxRows * kPanelVectors / (kUnits * kGates);
};

// Everything of one step that a tile of rows and units touches.
template <class V>
struct FwdStep {
  using S = typename V::scalar;
  const Packed<V>* h_prev[8];
  const S* igates[8];  // at unit 0, gate g at + g * H
  S* reserve[8];       // likewise, null if not kept
  const S* state_prev[8];
  S* c[8];
  S* h[8];
};

// One tile: MR rows, U vectors of units of every gate, K of the columns of W_hh. All but the last
// block of columns leave their sums in `partial`; the last goes on to the cell.
template <template <class> class Cell, class V, int MR, int U>
__attribute__((noinline)) void fwd_tile(const FwdStep<V>& step, const Packed<V>* w_hh_packed,
                                        int64_t K, const typename V::scalar* bias_packed,
                                        typename V::scalar* partial, bool first_block,
                                        bool last_block, int64_t H, int64_t j0) {
  using C = Cell<V>;
  constexpr CellTraits traits = C::kTraits;
  constexpr int G = traits.gates, B = G + traits.separate, R = traits.reserve;
  if (last_block) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const int64_t j = j0 + u * V::kLanes;
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) prefetch(step.igates[r] + g * H + j);
        if constexpr (C::kTraits.fwd_reads_state) prefetch(step.state_prev[r] + j);
      }
    }
  }
  V acc[MR][U * G];
  multiply(RowsOfA<Packed<V>, MR>(step.h_prev), PackedB<V, U * G>{w_hh_packed}, K, acc);
  add_tile(acc, partial, first_block);
  if (!last_block) return;
  // From memory, and one row at a time: unrolled on the accumulators the compiler spills them all.
#pragma GCC unroll 1
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 1
    for (int u = 0; u < U; ++u) {
      const int64_t j = j0 + u * V::kLanes;
      const int units = H - j < V::kLanes ? static_cast<int>(H - j) : V::kLanes;
      V igates[G], hgates[G], bias[B], reserve[R > 0 ? R : 1], state = V::broadcast(0);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        igates[g] = V::load(step.igates[r] + g * H + j, units);
        hgates[g] = V::load(partial + ((r * U + u) * G + g) * V::kLanes);
      }
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) bias[b] = V::load(bias_packed + (u * B + b) * V::kLanes);
      if constexpr (C::kTraits.fwd_reads_state) state = V::load(step.state_prev[r] + j, units);
      const V h = C::fwd(igates, hgates, bias, state, reserve);
      if (R > 0 && step.reserve[r]) {
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) reserve[i].store(step.reserve[r] + i * H + j, units);
      }
      if constexpr (traits.has_c) state.store(step.c[r] + j, units);
      h.store(step.h[r] + j, units);
    }
  }
}

// Where the rows of a tile find their operands: rows row_begin + (i + r) * row_step of step t.
template <template <class> class Cell, class V, int MR>
FASTLSTM_INLINE void fwd_step_rows(const RecurrenceFwd<typename V::scalar>& p,
                                   const FwdDirection<typename V::scalar>& d, int64_t t,
                                   const StepOperands<V>& operands, int64_t i, int64_t first_row,
                                   int64_t row_step, int64_t k0, FwdStep<V>& step) {
  using S = typename V::scalar;
  constexpr bool has_c = Cell<V>::kTraits.has_c;
  const int64_t base = p.step_begin[d.t_begin];
  for (int r = 0; r < MR; ++r) {
    const int64_t n = first_row + r * row_step, k = p.step_begin[t] + n;
    const int64_t prev = d.prev_row[k];
    step.h_prev[r] = operands.row(i + r, d.h + prev * p.h_stride, k0);
    step.h[r] = d.h_out ? d.h_out + (k - base) * p.h_out_stride : d.h + p.row[k] * p.h_stride;
    step.igates[r] = d.igates + (d.tokens ? d.tokens[k] : k - base) * p.igates_stride;
    step.reserve[r] = d.reserve ? d.reserve + (k - base) * p.reserve_stride : nullptr;
    if constexpr (has_c) {
      S* in_place = d.c + p.batch_row[n] * p.c_stride;
      step.c[r] = p.c_in_place ? in_place : d.c + p.row[k] * p.c_stride;
      step.state_prev[r] = prev == p.zero_row ? p.zeros
                           : p.c_in_place     ? in_place
                                              : d.c + prev * p.c_stride;
    } else {
      step.state_prev[r] = d.h + prev * p.h_stride;
    }
  }
}

// Rows of step t that belong to a share.
FASTLSTM_INLINE int64_t share_rows(const int64_t* step_begin, int64_t t, const Share& share) {
  const int64_t count = step_begin[t + 1] - step_begin[t];
  const int64_t end = share.row_end < count ? share.row_end : count;
  return end > share.row_begin ? ceil_div(end - share.row_begin, share.row_step) : 0;
}

template <class V>
void convert_h_prev(const RecurrenceFwd<typename V::scalar>& p,
                    const FwdDirection<typename V::scalar>& d, int64_t t, const Share& share,
                    int64_t count, StepOperands<V>& operands) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = p.step_begin[t] + share.row_begin + i * share.row_step;
    operands.convert(i, d.h + d.prev_row[k] * p.h_stride, p.P);
  }
}

template <template <class> class Cell, class V>
void recurrence_fwd(const RecurrenceFwd<typename V::scalar>& p, const Share& share,
                    Barrier* barrier) {
  using S = typename V::scalar;
  using Tile = FwdTile<Cell, V>;
  constexpr int64_t G = Tile::kGates, B = G + Cell<V>::kTraits.separate;
  constexpr int64_t block_rows = kBlockRows / Tile::kRows * Tile::kRows;
  const FwdDirection<S>& d = p.direction[share.direction];
  const int64_t H = p.H, P = p.P;
  const UnitPanels<V, Tile::kUnits> panels(H);
  S partial[block_rows * Tile::kUnits * G * V::kLanes];
  StepOperands<V> operands(p.workspace, share.thread, p.N, P);
  for (int64_t s = 0; s < d.t_end - d.t_begin; ++s) {
    const int64_t t = d.reverse ? d.t_end - 1 - s : d.t_begin + s;
    const int64_t count = share_rows(p.step_begin, t, share);
    if constexpr (StepOperands<V>::kConverts) convert_h_prev(p, d, t, share, count, operands);
    // A block of W_hh stays in L2 while the rows pass over it.
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      const int64_t vector = panels.begin(panel);
      if (vector < share.vector_begin || vector >= share.vector_end) continue;
      const int units = static_cast<int>(panels.begin(panel + 1) - vector);
      const S* bias = d.bias_packed + vector * B * V::kLanes;
      for (int64_t i0 = 0; i0 < count; i0 += block_rows) {
        const int64_t rows = count - i0 < block_rows ? count - i0 : block_rows;
        for (int64_t k0 = 0; k0 < P; k0 += kBlockK<S>) {
          const int64_t K = P - k0 < kBlockK<S> ? P - k0 : kBlockK<S>;
          const Packed<V>* w_hh =
              as_packed<V>(d.w_hh_packed) +
              (vector * depth_of<V>(P) + depth_of<V>(k0) * units) * G * V::kLanes;
          for_each_tile<Tile::kRows>(rows, [&](int64_t i, auto count_of_rows) {
            constexpr int MR = decltype(count_of_rows)::value;
            FwdStep<V> step;
            fwd_step_rows<Cell, V, MR>(p, d, t, operands, i0 + i,
                                       share.row_begin + (i0 + i) * share.row_step, share.row_step,
                                       k0, step);
            with_constant<Tile::kUnits>(units, [&](auto u) {
              fwd_tile<Cell, V, MR, u.value>(step, w_hh, depth_of<V>(K), bias,
                                             partial + i * u.value * G * V::kLanes, k0 == 0,
                                             k0 + K == P, H, vector * V::kLanes);
            });
          });
        }
      }
    }
    wait_for_group(barrier, share.group_size);
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
