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
using Panels = UnitPanels<V, kPanelVectors>;

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
__attribute__((noinline)) void rows_tile(const Packed<V>* const* a, const Packed<V>* b, int64_t K,
                                         typename V::scalar* const* c, int64_t column,
                                         int64_t columns, bool accumulate) {
  V acc[MR][NV];
  prefetch_rows<V, MR, NV>(c, column);
  multiply(RowsOfA<Packed<V>, MR>(a), PackedB<V, NV>{b}, K, acc);
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

// `depth` rows of a panel, zero beyond: `valid` scalars of each, then zeros up to `width`.
template <class V>
FASTLSTM_INLINE void pack_rows(const typename V::scalar* const* rows, int depth, int64_t valid,
                               int64_t width, Packed<V>* out) {
  constexpr int kDepth = Product<V>::kDepth;
  for (int64_t n = 0; n < width; n += V::kLanes) {
    const int64_t left = valid - n;
    V v[kDepth];
#pragma GCC unroll 2
    for (int i = 0; i < kDepth; ++i) {
      v[i] = i >= depth          ? V::broadcast(0)
             : left >= V::kLanes ? V::load(rows[i] + n)
             : left > 0          ? V::load(rows[i] + n, static_cast<int>(left))
                                 : V::broadcast(0);
    }
    Product<V>::store(v, out + n);
  }
}

// K rows from a function of k -> row, into out[K][width].
template <class V, class F>
FASTLSTM_INLINE void pack_rows_of(int64_t K, int64_t valid, int64_t width, Packed<V>* out,
                                  F&& row) {
  constexpr int kDepth = Product<V>::kDepth;
  for (int64_t k = 0; k < K; k += kDepth) {
    const int depth = K - k < kDepth ? static_cast<int>(K - k) : kDepth;
    const typename V::scalar* rows[kDepth];
    for (int i = 0; i < depth; ++i) rows[i] = row();
    pack_rows<V>(rows, depth, valid, width, out);
    out += width;
  }
}

// Transposed: lane l of out[k * width] is element k of row l, zero from row `valid` on.
template <class V>
void pack_columns_of(const typename V::scalar* rows, int64_t row_stride, int64_t valid, int64_t K,
                     int64_t width, Packed<V>* out) {
  constexpr int kDepth = Product<V>::kDepth;
  for (int64_t k = 0; k < K; k += V::kLanes) {
    const int depth = K - k < V::kLanes ? static_cast<int>(K - k) : V::kLanes;
    V block[V::kLanes];
#pragma GCC unroll 16
    for (int l = 0; l < V::kLanes; ++l) {
      block[l] = l < valid ? V::load(rows + l * row_stride + k, depth) : V::broadcast(0);
    }
    transpose(block);
    // Beyond the depth of the block there are zeros.
    auto store = [&](int i) {
      V terms[kDepth];
#pragma GCC unroll 2
      for (int t = 0; t < kDepth; ++t) terms[t] = block[i + t];
      Product<V>::store(terms, out + (k + i) / kDepth * width);
    };
    if (depth == V::kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; i += kDepth) store(i);
    } else {
      for (int i = 0; i < depth; i += kDepth) store(i);
    }
  }
}

// Columns [n0, n0 + width) of B.
template <class V>
void pack_panel(const PackPanels<typename V::scalar>& p, int64_t n0, int64_t width,
                Packed<V>* out) {
  const int64_t valid = p.N - n0 < width ? p.N - n0 : width;
  if (p.n_stride == 1) {
    const typename V::scalar* row = p.b + n0 - p.k_stride;
    pack_rows_of<V>(p.K, valid, width, out, [&] { return row += p.k_stride; });
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
    pack_panel<V>(p, n0, panels.begin(i + 1) * V::kLanes - n0,
                  as_packed<V>(p.packed) + n0 * depth_of<V>(p.K));
  }
}

template <class V>
void pack_gates(const PackGates<typename V::scalar>& p, int thread, int threads) {
  const int64_t vectors = ceil_div(p.H, V::kLanes);
  const int64_t panels = panel_count(vectors, kPanelVectors / p.gates);
  for (int64_t i = part(0, panels, thread, threads); i < part(0, panels, thread + 1, threads);
       ++i) {
    const int64_t begin = part(0, vectors, i, panels), end = part(0, vectors, i + 1, panels);
    const int64_t width = (end - begin) * p.gates * V::kLanes;
    Packed<V>* out = as_packed<V>(p.packed) + begin * p.gates * V::kLanes * depth_of<V>(p.K);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t left = p.H - j * V::kLanes, units = left < V::kLanes ? left : V::kLanes;
      for (int g = 0; g < p.gates; ++g, out += V::kLanes) {
        pack_columns_of<V>(p.w_hh + (g * p.H + j * V::kLanes) * p.w_hh_stride, p.w_hh_stride, units,
                           p.K, width, out);
      }
    }
  }
}

template <class V>
void pack_bias(const PackBias<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  const int64_t vectors = ceil_div(p.H, V::kLanes);
  const int blocks = p.gates + p.separate, summed = p.gates - p.separate;
  for (int64_t j = part(0, vectors, thread, threads); j < part(0, vectors, thread + 1, threads);
       ++j) {
    for (int b = 0; b < blocks; ++b) {
      // Blocks: the sums, b_ih of the separate gates, b_hh of the separate gates.
      const S* b_ih = b < p.gates ? p.b_ih : nullptr;
      const S* b_hh = b < summed || b >= p.gates ? p.b_hh : nullptr;
      const int gate = b < p.gates ? b : b - p.separate;
      for (int64_t l = 0; l < V::kLanes; ++l) {
        const int64_t unit = j * V::kLanes + l;
        const int64_t i = gate * p.H + unit;
        p.packed[(j * blocks + b) * V::kLanes + l] =
            unit < p.H ? (b_ih ? b_ih[i] : S(0)) + (b_hh ? b_hh[i] : S(0)) : S(0);
      }
    }
  }
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

// Pointers to rows [k0, k0 + K), in the order in which they are summed.
template <class V>
FASTLSTM_INLINE void rows_to_sum(const WeightGrad<typename V::scalar>& p,
                                 const Rows<const typename V::scalar>& rows, int64_t k0, int64_t K,
                                 const typename V::scalar** out) {
  RowCursor<const typename V::scalar> cursor(rows, k0);
  for (int64_t k = 0; k < K; ++k) out[p.last_first ? K - 1 - k : k] = cursor.next();
}

// d[k][m0 + r] -> out[tile][k][rows of the tile], and the column sums. Whole vectors are copied,
// each over the excess of the one before; out has kLanes scalars to spare.
template <class V>
void pack_columns(const WeightGrad<typename V::scalar>& p, const typename V::scalar* const* rows,
                  int64_t K, int64_t m0, int64_t M, bool sum_columns, bool accumulate,
                  Packed<V>* out) {
  using S = typename V::scalar;
  constexpr int kDepth = Product<V>::kDepth;
  for_each_tile<V::kMaxRows>(M, [&](int64_t m, auto mr) {
    // One vector holds the columns of a tile, but for a single lane.
    constexpr int width = decltype(mr)::value, vectors = ceil_div(width, V::kLanes);
    Packed<V>* tile_out = out + m * depth_of<V>(K);
    // In two levels, against the rounding error of one long sum.
    V sum[vectors], short_sum[vectors];
    for (int v = 0; v < vectors; ++v) sum[v] = V::broadcast(0);
    const bool whole = m0 + m + vectors * V::kLanes <= p.M;
    for (int64_t k0 = 0; k0 < K; k0 += kShortSum) {
      for (int v = 0; v < vectors; ++v) short_sum[v] = V::broadcast(0);
      for (int64_t k = k0; k < K && k < k0 + kShortSum; k += kDepth) {
        for (int v = 0; v < vectors; ++v) {
          V d[kDepth];
#pragma GCC unroll 2
          for (int i = 0; i < kDepth; ++i) {
            const S* column = rows[k + i < K ? k + i : k] + m0 + m + v * V::kLanes;
            d[i] = i > 0 && k + i >= K ? V::broadcast(0)
                   : whole             ? V::load(column)
                                       : V::load(column, width < V::kLanes ? width : V::kLanes);
            short_sum[v] = short_sum[v] + d[i];
          }
          Product<V>::store(d, tile_out + k / kDepth * width + v * V::kLanes);
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
  Packed<V>* a_packed = as_packed<V>(p.workspace + thread * weight_grad_workspace<V>());
  Packed<V>* b_packed = a_packed + kBlockRows * kBlockK<S> + V::kLanes;
  const int64_t blocks = ceil_div(p.K, kBlockK<S>);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k0 = (p.last_first ? blocks - 1 - block : block) * kBlockK<S>;
    const int64_t K = p.K - k0 < kBlockK<S> ? p.K - k0 : kBlockK<S>;
    const bool accumulate = p.accumulate || block > 0;
    const S *d_rows[kBlockK<S>], *x_rows[2][kBlockK<S>];
    rows_to_sum<V>(p, p.d, k0, K, d_rows);
    for (int x = 0; x < p.num_x; ++x) rows_to_sum<V>(p, p.x[x], k0, K, x_rows[x]);
    // Once at least: without any x the column sums are still wanted.
    for (int64_t i0 = 0; i0 == 0 || i0 < panels.count; i0 += kBlockPanels) {
      const int64_t i1 = panels.count - i0 < kBlockPanels ? panels.count : i0 + kBlockPanels;
      const int64_t depth = depth_of<V>(K);
      Packed<V>* b_panel[kBlockPanels + 1] = {b_packed};
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t n0 = panels.vector(i) * V::kLanes, width = panels.vectors(i) * V::kLanes;
        const int64_t valid = p.N[panels.x(i)] - n0;
        const S* const* row = x_rows[panels.x(i)];
        pack_rows_of<V>(K, valid, width, b_panel[i - i0], [&] { return *row++ + n0; });
        b_panel[i - i0 + 1] = b_panel[i - i0] + depth * width;
      }
      for (int64_t m0 = m_begin; m0 < m_end; m0 += kBlockRows) {
        const int64_t M = m_end - m0 < kBlockRows ? m_end - m0 : kBlockRows;
        pack_columns<V>(p, d_rows, K, m0, M, p.db && i0 == 0, accumulate, a_packed);
        for (int64_t i = i0; i < i1; ++i) {
          const int x = panels.x(i);
          const int64_t n0 = panels.vector(i) * V::kLanes;
          S* c[kBlockRows];
          for (int64_t m = 0; m < M; ++m) c[m] = p.dw[x] + (m0 + m) * p.N[x];
          with_constant<kPanelVectors>(static_cast<int>(panels.vectors(i)), [&](auto nv) {
            for_each_tile<V::kMaxRows>(M, [&](int64_t m, auto mr) {
              packed_tile<V, mr.value, nv.value>(a_packed + m * depth, b_panel[i - i0], depth,
                                                 c + m, n0, p.N[x] - n0, accumulate, p.chain);
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
      for (int64_t v = 0; v < p.V; ++v)
        add(partial + v * kColumns, p.table + v * p.table_stride + m0);
    }
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace cpu
}  // namespace fastlstm
