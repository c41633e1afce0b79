// The products of backward that sum over all rows of a layer: gradients of weights and biases, and
// of the table of a one-hot input. Both sum in one order, whatever the number of threads.
#pragma once

#include "gemm.inl"

namespace fastlstm {
namespace cpu {
FASTLSTM_ISA_LOCAL_BEGIN

constexpr int64_t kBlockPanels = 16;  // panels of B that weight_grad packs at a time

constexpr int64_t kShortSum = 16;  // terms of the first level of a bias gradient

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
