// Forward recurrence of one layer: for every step, hgates = h_prev W_hh^T in the register tile,
// then the cell on the accumulators, before anything but the result is stored.
#pragma once

#include "barrier.inl"
#include "tile.inl"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// Everything of one step that a tile of MR rows and one vector of hidden units touches.
template <class S>
struct FwdStep {
  const S* h_prev[8];
  const S* igates[8];  // at the unit of the tile, gate g at + g * H
  S* gates[8];         // likewise, null if not kept
  const S* c_prev[8];
  S* c[8];
  S* h[8];
};

// One tile: MR rows, one vector of units of every gate, K of the columns of W_hh. All but the last
// block of columns leave their sums in `partial`; the last goes on to the cell.
template <template <class> class Cell, class V, int MR>
__attribute__((noinline)) void fwd_tile(const FwdStep<typename V::scalar>& step,
                                        const typename V::scalar* w_hh_packed, int64_t K,
                                        const typename V::scalar* bias_packed,
                                        typename V::scalar* partial, bool first_block,
                                        bool last_block, int64_t H, int64_t j, int units) {
  constexpr int G = Cell<V>::kGates;
  if (last_block) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) prefetch(step.igates[r] + g * H + j);
      prefetch(step.c_prev[r] + j);
    }
  }
  V hgates[MR][G];
  multiply(RowsOfA<typename V::scalar, MR>(step.h_prev), w_hh_packed, K, hgates);
  add_tile(hgates, partial, first_block);
  if (!last_block) return;
  // From memory, and one row at a time: unrolled on the accumulators the compiler spills them all.
#pragma GCC unroll 1
  for (int r = 0; r < MR; ++r) {
    V igates[G], hgates_r[G], gates[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      igates[g] = V::load(step.igates[r] + g * H + j, units);
      hgates_r[g] =
          V::load(partial + (r * G + g) * V::kLanes) + V::load(bias_packed + g * V::kLanes);
    }
    V c = V::load(step.c_prev[r] + j, units);
    const V h = Cell<V>::fwd(igates, hgates_r, gates, c);
    if (step.gates[r]) {
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) gates[g].store(step.gates[r] + g * H + j, units);
    }
    c.store(step.c[r] + j, units);
    h.store(step.h[r] + j, units);
  }
}

template <template <class> class Cell, class V>
void recurrence_fwd(const RecurrenceFwd<typename V::scalar>& p, const Share& share,
                    Barrier* barrier) {
  using S = typename V::scalar;
  constexpr int64_t G = Cell<V>::kGates;
  const FwdDirection<S>& d = p.direction[share.direction];
  const int64_t H = p.H, N = p.N;
  const int64_t prev = d.reverse ? 1 : -1;
  S partial[kBlockRows * G * V::kLanes];
  for (int64_t s = 0; s < d.t_end - d.t_begin; ++s) {
    const int64_t t = d.reverse ? d.t_end - 1 - s : d.t_begin + s;
    const int64_t slot = t - d.t_begin;
    // A block of W_hh stays in L2 while the rows pass over it.
    for (int64_t vector = share.vector_begin; vector < share.vector_end; ++vector) {
      const int64_t j = vector * V::kLanes;
      const int units = H - j < V::kLanes ? static_cast<int>(H - j) : V::kLanes;
      for (int64_t row0 = share.row_begin; row0 < share.row_end; row0 += kBlockRows) {
        const int64_t rows = share.row_end - row0 < kBlockRows ? share.row_end - row0 : kBlockRows;
        for (int64_t k0 = 0; k0 < H; k0 += kBlockK<S>) {
          const int64_t K = H - k0 < kBlockK<S> ? H - k0 : kBlockK<S>;
          for_each_tile<V>(rows, [&](int64_t row, auto count) {
            FwdStep<S> step;
            for (int r = 0; r < count.value; ++r) {
              const int64_t n = row0 + row + r;
              step.h_prev[r] = d.h + (t + prev) * p.h_t_stride + n * p.h_n_stride + k0;
              step.h[r] = d.h + t * p.h_t_stride + n * p.h_n_stride;
              step.c_prev[r] = d.c + (t + prev) * p.c_t_stride + n * p.c_n_stride;
              step.c[r] = d.c + t * p.c_t_stride + n * p.c_n_stride;
              step.igates[r] =
                  d.igates + (d.tokens ? d.tokens[slot * N + n] : slot * N + n) * G * H;
              step.gates[r] = d.gates ? d.gates + (slot * N + n) * G * H : nullptr;
            }
            fwd_tile<Cell, V, count.value>(step, d.w_hh_packed + (vector * H + k0) * G * V::kLanes,
                                           K, d.bias_packed + vector * G * V::kLanes,
                                           partial + row * G * V::kLanes, k0 == 0, k0 + K == H, H,
                                           j, units);
          });
        }
      }
    }
    wait_for_group(barrier, share.group_size);
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
