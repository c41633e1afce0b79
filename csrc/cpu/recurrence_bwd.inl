// Backward recurrence of one layer: the dh / dc chain and dgates, nothing else. For every step,
// last first, dh = dy + dgates of the step after * W_hh in the register tile, then the cell's
// backward on the accumulators: dh never goes to memory. The weight gradients are one product over
// all steps afterwards.
#pragma once

#include "barrier.inl"
#include "gemm.inl"
#include "tile.inl"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

template <class S>
struct BwdStep {
  const S* dgates_next[8];
  const S* gates[8];
  const S* c[8];
  const S* c_prev[8];
  const S* dy[8];      // null: zero
  const S* dc_seq[8];  // null: zero
  const S* dh_n[8];    // null: zero
  S* dc[8];
  S* dgates[8];
};

// One tile: MR rows, NV vectors of hidden units from unit j0 on, K of the rows of W_hh. All but the
// last block of rows leave their sums in `partial`; the last goes on to the cell.
template <template <class> class Cell, class V, int MR, int NV>
__attribute__((noinline)) void bwd_tile(const BwdStep<typename V::scalar>& step,
                                        const typename V::scalar* w_hh_packed, int64_t K,
                                        typename V::scalar* partial, bool first_block,
                                        bool last_block, int64_t H, int64_t j0) {
  constexpr int G = Cell<V>::kGates;
  if (last_block) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const int64_t j = j0 + v * V::kLanes;
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) prefetch(step.gates[r] + g * H + j);
        prefetch(step.c_prev[r] + j);
        prefetch(step.dy[r] + j);
      }
    }
  }
  V dh[MR][NV];
  multiply(RowsOfA<typename V::scalar, MR>(step.dgates_next), w_hh_packed, K, dh);
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
      V gates[G], dgates[G];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) gates[g] = V::load(step.gates[r] + g * H + j, units);
      V dc = V::load(step.dc[r] + j, units);
      if (step.dc_seq[r]) dc = dc + V::load(step.dc_seq[r] + j, units);
      Cell<V>::bwd(gates, V::load(step.c[r] + j, units), V::load(step.c_prev[r] + j, units), dh_r,
                   dgates, dc);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) dgates[g].store(step.dgates[r] + g * H + j, units);
      dc.store(step.dc[r] + j, units);
    }
  }
}

template <template <class> class Cell, class V>
void recurrence_bwd(const RecurrenceBwd<typename V::scalar>& p, const Share& share,
                    Barrier* barrier) {
  using S = typename V::scalar;
  constexpr int64_t G = Cell<V>::kGates;
  const BwdDirection<S>& d = p.direction[share.direction];
  const int64_t H = p.H, N = p.N;
  const int64_t prev = d.reverse ? 1 : -1;
  const cpu::Panels<V> panels(H);
  S partial[kBlockRows * kPanelVectors * V::kLanes];
  for (int64_t s = 0; s < d.t_end - d.t_begin; ++s) {
    const int64_t t = d.reverse ? d.t_begin + s : d.t_end - 1 - s;
    const int64_t slot = t - d.t_begin;
    const bool first = d.first_call && s == 0;
    // After the last step of the sequence there are no dgates to multiply.
    const int64_t K_all = first ? 0 : G * H;
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      const int64_t vector = panels.begin(panel);
      if (vector < share.vector_begin || vector >= share.vector_end) continue;
      const int vectors = static_cast<int>(panels.begin(panel + 1) - vector);
      const S* w_hh_panel = d.w_hh_packed + vector * V::kLanes * G * H;
      for (int64_t row0 = share.row_begin; row0 < share.row_end; row0 += kBlockRows) {
        const int64_t rows = share.row_end - row0 < kBlockRows ? share.row_end - row0 : kBlockRows;
        int64_t k0 = 0;
        do {
          const int64_t K = K_all - k0 < kBlockK<S> ? K_all - k0 : kBlockK<S>;
          for_each_tile<V>(rows, [&](int64_t row, auto count) {
            BwdStep<S> step;
            for (int r = 0; r < count.value; ++r) {
              const int64_t n = row0 + row + r;
              step.dgates[r] = d.dgates + (slot * N + n) * p.dgates_stride;
              step.dgates_next[r] = d.dgates + ((slot - prev) * N + n) * p.dgates_stride + k0;
              step.gates[r] = d.gates + (slot * N + n) * G * H;
              step.c[r] = d.c + t * p.c_t_stride + n * p.c_n_stride;
              step.c_prev[r] = d.c + (t + prev) * p.c_t_stride + n * p.c_n_stride;
              step.dy[r] = d.dy ? d.dy + t * p.dy_t_stride + n * p.dy_n_stride : nullptr;
              step.dc_seq[r] =
                  d.dc_seq ? d.dc_seq + t * p.dc_seq_t_stride + n * p.dc_seq_n_stride : nullptr;
              step.dh_n[r] = first && d.dh_n ? d.dh_n + n * H : nullptr;
              step.dc[r] = d.dc_inout + n * H;
            }
            with_constant<kPanelVectors>(vectors, [&](auto nv) {
              bwd_tile<Cell, V, count.value, nv.value>(step, w_hh_panel + k0 * nv.value * V::kLanes,
                                                       K, partial + row * nv.value * V::kLanes,
                                                       k0 == 0, k0 + K == K_all, H,
                                                       vector * V::kLanes);
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
