// The big matrix products of a layer: input projection and dx; in weight_grad.inl the gradients of
// the weights.
//
// Why not BLAS: with 2 threads on 2 Zen 4 cores MKL 2024.2 reaches 49-83 % of the FMA peak at the
// shapes of a recurrent layer (median 64 %); it does not promise results independent of the number
// of threads; and it can neither read [T, N, I] rows of any stride nor share one packed operand
// between dW_ih and dW_hh. The tile is the one of the recurrence; the blocking is Goto & van de
// Geijn 2008 with the register tile's B panel in L2 and its rows of A in L1.
#pragma once

#include "kernels.h"
#include "pack.inl"
#include "tile.inl"

namespace fastlstm {
namespace cpu {
FASTLSTM_ISA_LOCAL_BEGIN

template <class V, int MR, int NV>
FASTLSTM_INLINE void add_to_rows(const V (&acc)[MR][NV], typename V::scalar* const* c,
                                 int64_t column, int64_t columns, bool accumulate) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      typename V::scalar* p = c[r] + column + v * V::kLanes;
      const int64_t left = columns - v * V::kLanes;
      const int n = left < V::kLanes ? static_cast<int>(left) : V::kLanes;
      (accumulate ? V::load(p, n) + acc[r][v] : acc[r][v]).store(p, n);
    }
  }
}

// The tile of c is needed K steps later: by then it is in L1.
template <class V, int MR, int NV>
FASTLSTM_INLINE void prefetch_rows(typename V::scalar* const* c, int64_t column) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) prefetch(c[r] + column + v * V::kLanes);
  }
}

// Terms of a sum in dx and igates. With one lane, which is not made for speed, fewer: with 128 the
// largest error of dx was 2.4 times that of torch.nn on a Zen 3.
template <class V>
constexpr int64_t kRowsChain = V::kLanes == 1 ? 16 : kChain;

// noinline: one copy of each tile, and the compiler allocates its registers alone.
template <class V, int MR, int NV>
__attribute__((noinline)) void rows_tile(const Packed<V>* const* a, const Packed<V>* b, int64_t K,
                                         typename V::scalar* const* c, int64_t column,
                                         int64_t columns, bool accumulate) {
  V acc[MR][NV];
  prefetch_rows<V, MR, NV>(c, column);
  multiply(RowsOfA<Packed<V>, MR>(a), PackedB<V, NV>{b}, K, acc, kRowsChain<V>);
  add_to_rows(acc, c, column, columns, accumulate);
}

template <class V, int MR, int NV>
__attribute__((noinline)) void packed_tile(const Packed<V>* a, const Packed<V>* b, int64_t K,
                                           typename V::scalar* const* c, int64_t column,
                                           int64_t columns, bool accumulate, int64_t chain) {
  V acc[MR][NV];
  prefetch_rows<V, MR, NV>(c, column);
  multiply(PackedA<Packed<V>, MR>(a), PackedB<V, NV>{b}, K, acc, chain);
  add_to_rows(acc, c, column, columns, accumulate);
}

// A block of rows of A as operands: where they are,
template <class V>
struct OperandRows {
  FASTLSTM_INLINE const Packed<V>* row(int64_t, const typename V::scalar* from, int64_t) const {
    return from;
  }
};

template <class V>
void packed_matmul_block(const PackedMatmul<typename V::scalar>& p, int64_t m_begin, int64_t m_end,
                         int64_t panel_begin, int64_t panel_end) {
  using S = typename V::scalar;
  const Panels<V> panels(p.N);
  for (int64_t k0 = 0; k0 < p.K; k0 += kBlockK<S>) {
    const int64_t K = p.K - k0 < kBlockK<S> ? p.K - k0 : kBlockK<S>;
    const bool accumulate = p.accumulate || k0 > 0;
    for (int64_t m0 = m_begin; m0 < m_end; m0 += kBlockRows) {
      const int64_t M = m_end - m0 < kBlockRows ? m_end - m0 : kBlockRows;
      const Packed<V>* a[kBlockRows];
      S* c[kBlockRows];
      RowCursor<const S> a_rows(p.a, m0);
      RowCursor<S> c_rows(p.c, m0);
      OperandRows<V> operands;
      for (int64_t m = 0; m < M; ++m) {
        a[m] = operands.row(m, a_rows.next() + k0, K);
        c[m] = c_rows.next();
      }
      for (int64_t i = panel_begin; i < panel_end; ++i) {
        const int64_t v0 = panels.begin(i);
        const int vectors = static_cast<int>(panels.begin(i + 1) - v0);
        const int64_t n0 = v0 * V::kLanes;
        const Packed<V>* b = as_packed<V>(p.b_packed) + n0 * depth_of<V>(p.K) +
                             depth_of<V>(k0) * vectors * V::kLanes;
        with_constant<kPanelVectors>(vectors, [&](auto nv) {
          for_each_tile<V::kMaxRows>(M, [&](int64_t m, auto mr) {
            rows_tile<V, mr.value, nv.value>(a + m, b, depth_of<V>(K), c + m, n0, p.N - n0,
                                             accumulate);
          });
        });
      }
    }
  }
}

template <class V>
void packed_matmul(const PackedMatmul<typename V::scalar>& p, int thread, int threads) {
  const int64_t panels = Panels<V>(p.N).count;
  if (p.M >= 2 * V::kMaxRows * threads) {
    packed_matmul_block<V>(p, part(0, p.M, thread, threads), part(0, p.M, thread + 1, threads), 0,
                           panels);
  } else {
    packed_matmul_block<V>(p, 0, p.M, part(0, panels, thread, threads),
                           part(0, panels, thread + 1, threads));
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace cpu
}  // namespace fastlstm
