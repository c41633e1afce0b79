// The big matrix products of a layer: input projection, dx, and the weight gradients.
//
// Why not BLAS: with 2 threads on 2 Zen 4 cores MKL 2024.2 reaches 49-83 % of the FMA peak at the
// shapes of a recurrent layer (median 64 %); it does not promise results independent of the number
// of threads; and it can neither read [T, N, I] rows of any stride nor share one packed operand
// between dW_ih and dW_hh. The tile is the one of the recurrence; the blocking is Goto & van de
// Geijn 2008 with the register tile's B panel in L2 and its rows of A in L1.
#pragma once

#include "kernels.h"
#include "tile.inl"

namespace fastlstm {
namespace cpu {
FASTLSTM_ISA_LOCAL_BEGIN

constexpr int64_t kBlockPanels = 16;  // panels of B that weight_grad packs at a time

constexpr int64_t kShortSum = 16;  // terms of the first level of a bias gradient

template <class V>
struct Panels {
  int64_t vectors, count;
  explicit FASTLSTM_INLINE Panels(int64_t N)
      : vectors(ceil_div(N, V::kLanes)), count(panel_count(vectors)) {}
  FASTLSTM_INLINE int64_t begin(int64_t p) const { return part(0, vectors, p, count); }
};

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

// noinline: one copy of each tile, and the compiler allocates its registers alone.
template <class V, int MR, int NV>
__attribute__((noinline)) void rows_tile(const typename V::scalar* const* a,
                                         const typename V::scalar* b, int64_t K,
                                         typename V::scalar* const* c, int64_t column,
                                         int64_t columns, bool accumulate) {
  V acc[MR][NV];
  prefetch_rows<V, MR, NV>(c, column);
  multiply(RowsOfA<typename V::scalar, MR>(a), b, K, acc);
  add_to_rows(acc, c, column, columns, accumulate);
}

template <class V, int MR, int NV>
__attribute__((noinline)) void packed_tile(const typename V::scalar* a, const typename V::scalar* b,
                                           int64_t K, typename V::scalar* const* c, int64_t column,
                                           int64_t columns, bool accumulate) {
  V acc[MR][NV];
  prefetch_rows<V, MR, NV>(c, column);
  multiply(PackedA<typename V::scalar, MR>(a), b, K, acc);
  add_to_rows(acc, c, column, columns, accumulate);
}

// One row of a panel: `valid` scalars of row, then zeros up to `width`.
template <class V>
FASTLSTM_INLINE void pack_row(const typename V::scalar* row, int64_t valid, int64_t width,
                              typename V::scalar* out) {
  for (int64_t n = 0; n < width; n += V::kLanes) {
    const int64_t left = valid - n;
    const V v = left >= V::kLanes ? V::load(row + n)
                : left > 0        ? V::load(row + n, static_cast<int>(left))
                                  : V::broadcast(0);
    v.store(out + n);
  }
}

// Transposed: lane l of out[k * width] is element k of row l, zero from row `valid` on.
template <class V>
void pack_columns_of(const typename V::scalar* rows, int64_t row_stride, int64_t valid, int64_t K,
                     int64_t width, typename V::scalar* out) {
  for (int64_t k = 0; k < K; k += V::kLanes) {
    const int depth = K - k < V::kLanes ? static_cast<int>(K - k) : V::kLanes;
    V block[V::kLanes];
#pragma GCC unroll 16
    for (int l = 0; l < V::kLanes; ++l) {
      block[l] = l < valid ? V::load(rows + l * row_stride + k, depth) : V::broadcast(0);
    }
    transpose(block);
    if (depth == V::kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i) block[i].store(out + (k + i) * width);
    } else {
      for (int i = 0; i < depth; ++i) block[i].store(out + (k + i) * width);
    }
  }
}

// Columns [n0, n0 + width) of B.
template <class V>
void pack_panel(const PackPanels<typename V::scalar>& p, int64_t n0, int64_t width,
                typename V::scalar* out) {
  const int64_t valid = p.N - n0 < width ? p.N - n0 : width;
  if (p.n_stride == 1) {
    for (int64_t k = 0; k < p.K; ++k)
      pack_row<V>(p.b + k * p.k_stride + n0, valid, width, out + k * width);
    return;
  }
  for (int64_t n = 0; n < width; n += V::kLanes) {
    pack_columns_of<V>(p.b + (n0 + n) * p.n_stride, p.n_stride, valid - n, p.K, width, out + n);
  }
}

template <class V>
void pack_panels(const PackPanels<typename V::scalar>& p, int thread, int threads) {
  const Panels<V> panels(p.N);
  for (int64_t i = part(0, panels.count, thread, threads);
       i < part(0, panels.count, thread + 1, threads); ++i) {
    const int64_t n0 = panels.begin(i) * V::kLanes;
    pack_panel<V>(p, n0, panels.begin(i + 1) * V::kLanes - n0, p.packed + n0 * p.K);
  }
}

template <class V>
void pack_gates(const PackGates<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  const int64_t vectors = ceil_div(p.H, V::kLanes);
  const int64_t width = p.gates * V::kLanes;
  for (int64_t j = part(0, vectors, thread, threads); j < part(0, vectors, thread + 1, threads);
       ++j) {
    const int64_t units = p.H - j * V::kLanes < V::kLanes ? p.H - j * V::kLanes : V::kLanes;
    S* out = p.w_hh_packed + j * p.H * width;
    S* bias = p.bias_packed + j * width;
    for (int g = 0; g < p.gates; ++g) {
      pack_columns_of<V>(p.w_hh + (g * p.H + j * V::kLanes) * p.w_hh_stride, p.w_hh_stride, units,
                         p.H, width, out + g * V::kLanes);
    }
    for (int g = 0; g < p.gates; ++g) {
      for (int64_t l = 0; l < V::kLanes; ++l) {
        const int64_t unit = g * p.H + j * V::kLanes + l;
        bias[g * V::kLanes + l] =
            l < units ? (p.b_ih ? p.b_ih[unit] : S(0)) + (p.b_hh ? p.b_hh[unit] : S(0)) : S(0);
      }
    }
  }
}

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
      const S* a[kBlockRows];
      S* c[kBlockRows];
      RowCursor<const S> a_rows(p.a, m0);
      RowCursor<S> c_rows(p.c, m0);
      for (int64_t m = 0; m < M; ++m) {
        a[m] = a_rows.next() + k0;
        c[m] = c_rows.next();
      }
      for (int64_t i = panel_begin; i < panel_end; ++i) {
        const int64_t v0 = panels.begin(i);
        const int vectors = static_cast<int>(panels.begin(i + 1) - v0);
        const int64_t n0 = v0 * V::kLanes;
        const S* b = p.b_packed + n0 * p.K + k0 * vectors * V::kLanes;
        with_constant<kPanelVectors>(vectors, [&](auto nv) {
          for_each_tile<V>(M, [&](int64_t m, auto mr) {
            rows_tile<V, mr.value, nv.value>(a + m, b, K, c + m, n0, p.N - n0, accumulate);
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

// d[k][m0 + r] -> out[tile][k][rows of the tile], and the column sums. Whole vectors are copied,
// each over the excess of the one before; out has kLanes scalars to spare.
template <class V>
void pack_columns(const WeightGrad<typename V::scalar>& p, int64_t k_begin, int64_t K, int64_t m0,
                  int64_t M, bool sum_columns, bool accumulate, typename V::scalar* out) {
  using S = typename V::scalar;
  const S* rows[kBlockK<S>];
  RowCursor<const S> cursor(p.d, k_begin);
  for (int64_t k = 0; k < K; ++k) rows[k] = cursor.next() + m0;
  for_each_tile<V>(M, [&](int64_t m, auto mr) {
    // One vector holds the columns of a tile, but for a single lane.
    constexpr int width = decltype(mr)::value, vectors = ceil_div(width, V::kLanes);
    S* tile_out = out + m * K;
    // In two levels, against the rounding error of one long sum.
    V sum[vectors], short_sum[vectors];
    for (int v = 0; v < vectors; ++v) sum[v] = V::broadcast(0);
    const bool whole = m0 + m + vectors * V::kLanes <= p.M;
    for (int64_t k0 = 0; k0 < K; k0 += kShortSum) {
      for (int v = 0; v < vectors; ++v) short_sum[v] = V::broadcast(0);
      for (int64_t k = k0; k < K && k < k0 + kShortSum; ++k) {
        for (int v = 0; v < vectors; ++v) {
          const S* column = rows[k] + m + v * V::kLanes;
          const V d =
              whole ? V::load(column) : V::load(column, width < V::kLanes ? width : V::kLanes);
          d.store(tile_out + k * width + v * V::kLanes);
          short_sum[v] = short_sum[v] + d;
        }
      }
      for (int v = 0; v < vectors; ++v) sum[v] = sum[v] + short_sum[v];
    }
    if (sum_columns) {
      S sums[vectors * V::kLanes];
      for (int v = 0; v < vectors; ++v) sum[v].store(sums + v * V::kLanes);
      for (int r = 0; r < width; ++r)
        p.db[m0 + m + r] = accumulate ? p.db[m0 + m + r] + sums[r] : sums[r];
    }
  });
}

// The panels of all x one after the other: panel i of x[0], then of x[1].
template <class V>
struct JointPanels {
  const WeightGrad<typename V::scalar>& p;
  Panels<V> panels[2];
  int64_t count;

  explicit JointPanels(const WeightGrad<typename V::scalar>& grad)
      : p(grad),
        panels{Panels<V>(grad.N[0]), Panels<V>(grad.num_x > 1 ? grad.N[1] : 0)},
        count(panels[0].count + panels[1].count) {}
  int x(int64_t i) const { return i < panels[0].count ? 0 : 1; }
  int64_t local(int64_t i) const { return x(i) == 0 ? i : i - panels[0].count; }
  int64_t vector(int64_t i) const { return panels[x(i)].begin(local(i)); }
  int64_t vectors(int64_t i) const { return panels[x(i)].begin(local(i) + 1) - vector(i); }
};

template <class V>
constexpr int64_t weight_grad_workspace() {
  return kBlockRows * kBlockK<typename V::scalar> + V::kLanes +
         kBlockPanels * kPanelVectors * V::kLanes * kBlockK<typename V::scalar>;
}

template <class V>
void weight_grad(const WeightGrad<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  const JointPanels<V> panels(p);
  const int64_t m_begin = part(0, p.M, thread, threads), m_end = part(0, p.M, thread + 1, threads);
  S* a_packed = p.workspace + thread * weight_grad_workspace<V>();
  S* b_packed = a_packed + kBlockRows * kBlockK<S> + V::kLanes;
  for (int64_t k0 = 0; k0 < p.K; k0 += kBlockK<S>) {
    const int64_t K = p.K - k0 < kBlockK<S> ? p.K - k0 : kBlockK<S>;
    const bool accumulate = p.accumulate || k0 > 0;
    for (int64_t i0 = 0; i0 < panels.count; i0 += kBlockPanels) {
      const int64_t i1 = panels.count - i0 < kBlockPanels ? panels.count : i0 + kBlockPanels;
      S* b_panel[kBlockPanels + 1] = {b_packed};
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t n0 = panels.vector(i) * V::kLanes, width = panels.vectors(i) * V::kLanes;
        const int64_t valid = p.N[panels.x(i)] - n0;
        RowCursor<const S> rows(p.x[panels.x(i)], k0);
        for (int64_t k = 0; k < K; ++k)
          pack_row<V>(rows.next() + n0, valid, width, b_panel[i - i0] + k * width);
        b_panel[i - i0 + 1] = b_panel[i - i0] + K * width;
      }
      for (int64_t m0 = m_begin; m0 < m_end; m0 += kBlockRows) {
        const int64_t M = m_end - m0 < kBlockRows ? m_end - m0 : kBlockRows;
        pack_columns<V>(p, k0, K, m0, M, p.db && i0 == 0, accumulate, a_packed);
        for (int64_t i = i0; i < i1; ++i) {
          const int x = panels.x(i);
          const int64_t n0 = panels.vector(i) * V::kLanes;
          S* c[kBlockRows];
          for (int64_t m = 0; m < M; ++m) c[m] = p.dw[x] + (m0 + m) * p.N[x];
          with_constant<kPanelVectors>(static_cast<int>(panels.vectors(i)), [&](auto nv) {
            for_each_tile<V>(M, [&](int64_t m, auto mr) {
              packed_tile<V, mr.value, nv.value>(a_packed + m * K, b_panel[i - i0], K, c + m, n0,
                                                 p.N[x] - n0, accumulate);
            });
          });
        }
      }
    }
  }
}

constexpr int64_t kSegmentVectors = 8;  // a table of 65 rows x 128 floats stays in L1

// Threads share the columns, so every sum runs over the rows in one order. In two levels, against
// the rounding error of one long sum: blocks of about sqrt(K V) rows, so that a token has about as
// many terms in a block as there are blocks. With a large vocabulary there is one block.
template <class V>
void segment_sum(const SegmentSum<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  constexpr int64_t kColumns = kSegmentVectors * V::kLanes;
  const int64_t vectors = ceil_div(p.M, V::kLanes);
  const int64_t m_begin = part(0, vectors, thread, threads) * V::kLanes;
  const int64_t share_end = part(0, vectors, thread + 1, threads) * V::kLanes;
  const int64_t m_end = share_end < p.M ? share_end : p.M;
  const int64_t block = p.V + static_cast<int64_t>(__builtin_sqrt(static_cast<double>(p.K * p.V)));
  S* partial = p.workspace + thread * p.V * kColumns;
  for (int64_t m0 = m_begin; m0 < m_end; m0 += kColumns) {
    const int64_t columns = m_end - m0 < kColumns ? m_end - m0 : kColumns;
    // Adds a row of `columns` scalars.
    auto add = [&](const S* from, S* to) {
      for (int64_t m = 0; m < columns; m += V::kLanes) {
        const int n = columns - m < V::kLanes ? static_cast<int>(columns - m) : V::kLanes;
        (V::load(to + m, n) + V::load(from + m, n)).store(to + m, n);
      }
    };
    for (int64_t k0 = 0; k0 < p.K; k0 += block) {
      const int64_t k1 = p.K - k0 < block ? p.K : k0 + block;
      for (int64_t i = 0; i < p.V * kColumns; i += V::kLanes) V::broadcast(0).store(partial + i);
      for (int64_t k = k0; k < k1; ++k)
        add(p.d + k * p.d_stride + m0, partial + p.tokens[k] * kColumns);
      for (int64_t v = 0; v < p.V; ++v) add(partial + v * kColumns, p.table + v * p.M + m0);
    }
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace cpu
}  // namespace fastlstm
