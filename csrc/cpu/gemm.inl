// The big matrix products of a layer: input projection, dx, and the weight gradients.
//
// Why not BLAS: on 2 Zen 4 cores MKL 2024.2 reaches 55-70 % of the FMA peak at the shapes of a recurrent layer, its result
// may depend on the number of threads, and it can neither read [T, N, I] rows of any stride nor share one packed operand
// between dW_ih and dW_hh. The tile is the one of the recurrence; the blocking is Goto & van de Geijn 2008 with the
// register tile's B panel in L2 and its rows of A in L1.
#pragma once

#include "kernels.h"
#include "tile.inl"

namespace fastlstm {
namespace cpu {
FASTLSTM_ISA_LOCAL_BEGIN

// A block of B: 4 vectors x kBlockK x 64 bytes = 64 KB stays in L2 while kBlockM rows pass; partial sums over kBlockK
// also keep rounding errors near those of pairwise summation.
constexpr int64_t kBlockK = 256;
constexpr int64_t kBlockM = 120;        // a multiple of every kMaxRows: 120 KB of A in L2
constexpr int64_t kBlockPanels = 16;    // of B in weight_grad: 1 MB packed at a time

template <class V>
struct Panels {
  int64_t vectors, count;
  explicit FASTLSTM_INLINE Panels(int64_t N) : vectors(ceil_div(N, V::kLanes)), count(ceil_div(vectors, kPanelVectors)) {}
  FASTLSTM_INLINE int64_t begin(int64_t p) const { return part(0, vectors, p, count); }
};

template <class V, int MR, int NV>
FASTLSTM_INLINE void add_to_rows(const V (&acc)[MR][NV], typename V::scalar* const* c, int64_t column, int64_t columns, bool accumulate) {
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

template <class V, int MR, int NV>
FASTLSTM_INLINE void clear(V (&acc)[MR][NV]) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = V::broadcast(0);
  }
}

// noinline: one copy of each tile, and the compiler allocates its registers alone.
template <class V, int MR, int NV>
__attribute__((noinline)) void rows_tile(const typename V::scalar* const* a, const typename V::scalar* b, int64_t K,
                                         typename V::scalar* const* c, int64_t column, int64_t columns, bool accumulate) {
  V acc[MR][NV];
  clear(acc);
  multiply_rows(a, b, K, acc);
  add_to_rows(acc, c, column, columns, accumulate);
}

template <class V, int MR, int NV>
__attribute__((noinline)) void packed_tile(const typename V::scalar* a, const typename V::scalar* b, int64_t K,
                                           typename V::scalar* const* c, int64_t column, int64_t columns, bool accumulate) {
  V acc[MR][NV];
  clear(acc);
  multiply_packed(a, b, K, acc);
  add_to_rows(acc, c, column, columns, accumulate);
}

// One panel of NV vectors, columns [n0, n0 + NV * lanes) of B, rows k of [k_begin, k_end).
template <class V>
void pack_panel(const PackPanels<typename V::scalar>& p, int64_t n0, int64_t width, int64_t k_begin, int64_t k_end,
                typename V::scalar* out) {
  using S = typename V::scalar;
  const int64_t valid = p.N - n0 < width ? p.N - n0 : width;
  if (p.n_stride == 1) {
    for (int64_t k = k_begin; k < k_end; ++k, out += width) {
      const S* row = p.b + k * p.k_stride + n0;
      int64_t n = 0;
      for (; n + V::kLanes <= valid; n += V::kLanes) V::load(row + n).store(out + n);
      for (; n < width; ++n) out[n] = n < valid ? row[n] : S(0);
    }
    return;
  }
  // Columns of B are contiguous: 16 of k at a time, so that each cache line is read once.
  for (int64_t k = k_begin; k < k_end; k += 16) {
    const int64_t depth = k_end - k < 16 ? k_end - k : 16;
    for (int64_t n = 0; n < width; ++n) {
      const S* column = p.b + (n0 + n) * p.n_stride + k * p.k_stride;
      for (int64_t i = 0; i < depth; ++i) out[(k - k_begin + i) * width + n] = n < valid ? column[i * p.k_stride] : S(0);
    }
  }
}

template <class V>
void pack_panels(const PackPanels<typename V::scalar>& p, int thread, int threads) {
  const Panels<V> panels(p.N);
  for (int64_t i = part(0, panels.count, thread, threads); i < part(0, panels.count, thread + 1, threads); ++i) {
    const int64_t n0 = panels.begin(i) * V::kLanes;
    pack_panel<V>(p, n0, panels.begin(i + 1) * V::kLanes - n0, 0, p.K, p.packed + n0 * p.K);
  }
}

template <class V>
void pack_gates(const PackGates<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  const int64_t vectors = ceil_div(p.H, V::kLanes);
  const int64_t width = p.gates * V::kLanes;
  for (int64_t j = part(0, vectors, thread, threads); j < part(0, vectors, thread + 1, threads); ++j) {
    const int64_t units = p.H - j * V::kLanes < V::kLanes ? p.H - j * V::kLanes : V::kLanes;
    S* out = p.w_hh_packed + j * p.H * width;
    S* bias = p.bias_packed + j * width;
    for (int64_t k = 0; k < p.H; k += 16) {
      const int64_t depth = p.H - k < 16 ? p.H - k : 16;
      for (int g = 0; g < p.gates; ++g) {
        for (int64_t l = 0; l < V::kLanes; ++l) {
          const S* row = p.w_hh + (g * p.H + j * V::kLanes + l) * p.w_hh_stride + k;
          for (int64_t i = 0; i < depth; ++i) out[(k + i) * width + g * V::kLanes + l] = l < units ? row[i] : S(0);
        }
      }
    }
    for (int g = 0; g < p.gates; ++g) {
      for (int64_t l = 0; l < V::kLanes; ++l) {
        const int64_t unit = g * p.H + j * V::kLanes + l;
        bias[g * V::kLanes + l] = l < units ? (p.b_ih ? p.b_ih[unit] : S(0)) + (p.b_hh ? p.b_hh[unit] : S(0)) : S(0);
      }
    }
  }
}

template <class V>
void packed_matmul_block(const PackedMatmul<typename V::scalar>& p, int64_t m_begin, int64_t m_end, int64_t panel_begin,
                         int64_t panel_end) {
  using S = typename V::scalar;
  const Panels<V> panels(p.N);
  for (int64_t k0 = 0; k0 < p.K; k0 += kBlockK) {
    const int64_t K = p.K - k0 < kBlockK ? p.K - k0 : kBlockK;
    const bool accumulate = p.accumulate || k0 > 0;
    for (int64_t m0 = m_begin; m0 < m_end; m0 += kBlockM) {
      const int64_t M = m_end - m0 < kBlockM ? m_end - m0 : kBlockM;
      const S* a[kBlockM];
      S* c[kBlockM];
      RowCursor<const S> a_rows(p.a, m0);
      RowCursor<S> c_rows(p.c, m0);
      for (int64_t m = 0; m < M; ++m) {
        a[m] = a_rows.next() + k0;
        c[m] = c_rows.next();
      }
      const int64_t tiles = ceil_div(M, V::kMaxRows);
      for (int64_t i = panel_begin; i < panel_end; ++i) {
        const int64_t v0 = panels.begin(i);
        const int vectors = static_cast<int>(panels.begin(i + 1) - v0);
        const int64_t n0 = v0 * V::kLanes;
        const S* b = p.b_packed + n0 * p.K + k0 * vectors * V::kLanes;
        with_constant<kPanelVectors>(vectors, [&](auto nv) {
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t m = part(0, M, tile, tiles);
            with_constant<V::kMaxRows>(static_cast<int>(part(0, M, tile + 1, tiles) - m), [&](auto mr) {
              rows_tile<V, mr.value, nv.value>(a + m, b, K, c + m, n0, p.N - n0, accumulate);
            });
          }
        });
      }
    }
  }
}

template <class V>
void packed_matmul(const PackedMatmul<typename V::scalar>& p, int thread, int threads) {
  const int64_t panels = Panels<V>(p.N).count;
  if (p.M >= 2 * V::kMaxRows * threads) {
    packed_matmul_block<V>(p, part(0, p.M, thread, threads), part(0, p.M, thread + 1, threads), 0, panels);
  } else {
    packed_matmul_block<V>(p, 0, p.M, part(0, panels, thread, threads), part(0, panels, thread + 1, threads));
  }
}

// d[k][m0 + r] -> out[tile][k][rows of the tile], and the column sums.
template <class V>
void pack_columns(const WeightGrad<typename V::scalar>& p, int64_t k0, int64_t K, int64_t m0, int64_t M,
                  typename V::scalar* out, bool add_db) {
  using S = typename V::scalar;
  const int64_t tiles = ceil_div(M, V::kMaxRows);
  const S* rows[kBlockK];
  RowCursor<const S> cursor(p.d, k0);
  for (int64_t k = 0; k < K; ++k) rows[k] = cursor.next() + m0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t m = part(0, M, tile, tiles);
    const int64_t width = part(0, M, tile + 1, tiles) - m;
    with_constant<V::kMaxRows>(static_cast<int>(width), [&](auto mr) {
      S* tile_out = out + m * K;
      S sum[mr.value] = {};
      for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 8
        for (int r = 0; r < mr.value; ++r) {
          const S d = rows[k][m + r];
          tile_out[k * mr.value + r] = d;
          sum[r] += d;
        }
      }
      if (p.db) {
        for (int r = 0; r < mr.value; ++r) p.db[m0 + m + r] = add_db ? p.db[m0 + m + r] + sum[r] : sum[r];
      }
    });
  }
}

// Rows of x in panels, as pack_panel does for a plain matrix.
template <class V>
void pack_rows(const Rows<const typename V::scalar>& x, int64_t k0, int64_t K, int64_t N, int64_t n0, int64_t width,
               typename V::scalar* out) {
  using S = typename V::scalar;
  const int64_t valid = N - n0 < width ? N - n0 : width;
  RowCursor<const S> cursor(x, k0);
  for (int64_t k = 0; k < K; ++k, out += width) {
    const S* row = cursor.next() + n0;
    int64_t n = 0;
    for (; n + V::kLanes <= valid; n += V::kLanes) V::load(row + n).store(out + n);
    for (; n < width; ++n) out[n] = n < valid ? row[n] : S(0);
  }
}

template <class V>
constexpr int64_t weight_grad_workspace() {
  return kBlockM * kBlockK + kBlockPanels * kPanelVectors * V::kLanes * kBlockK;
}

template <class V>
void weight_grad(const WeightGrad<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  const int64_t m_begin = part(0, p.M, thread, threads), m_end = part(0, p.M, thread + 1, threads);
  S* a_packed = p.workspace + thread * weight_grad_workspace<V>();
  S* b_packed = a_packed + kBlockM * kBlockK;
  for (int64_t k0 = 0; k0 < p.K; k0 += kBlockK) {
    const int64_t K = p.K - k0 < kBlockK ? p.K - k0 : kBlockK;
    const bool accumulate = p.accumulate || k0 > 0;
    bool first_block = true;
    for (int x = 0; x < p.num_x; ++x) {
      const Panels<V> panels(p.N[x]);
      for (int64_t panel0 = 0; panel0 < panels.count; panel0 += kBlockPanels) {
        const int64_t panel1 = panels.count - panel0 < kBlockPanels ? panels.count : panel0 + kBlockPanels;
        const int64_t block_n0 = panels.begin(panel0) * V::kLanes;
        for (int64_t i = panel0; i < panel1; ++i) {
          const int64_t n0 = panels.begin(i) * V::kLanes;
          pack_rows<V>(p.x[x], k0, K, p.N[x], n0, panels.begin(i + 1) * V::kLanes - n0, b_packed + (n0 - block_n0) * K);
        }
        for (int64_t m0 = m_begin; m0 < m_end; m0 += kBlockM) {
          const int64_t M = m_end - m0 < kBlockM ? m_end - m0 : kBlockM;
          const int64_t tiles = ceil_div(M, V::kMaxRows);
          WeightGrad<S> columns = p;
          if (!first_block) columns.db = nullptr;
          pack_columns<V>(columns, k0, K, m0, M, a_packed, accumulate);
          S* c[kBlockM];
          for (int64_t m = 0; m < M; ++m) c[m] = p.dw[x] + (m0 + m) * p.N[x];
          for (int64_t i = panel0; i < panel1; ++i) {
            const int64_t v0 = panels.begin(i);
            const int64_t n0 = v0 * V::kLanes;
            const S* b = b_packed + (n0 - block_n0) * K;
            with_constant<kPanelVectors>(static_cast<int>(panels.begin(i + 1) - v0), [&](auto nv) {
              for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t m = part(0, M, tile, tiles);
                with_constant<V::kMaxRows>(static_cast<int>(part(0, M, tile + 1, tiles) - m), [&](auto mr) {
                  packed_tile<V, mr.value, nv.value>(a_packed + m * K, b, K, c + m, n0, p.N[x] - n0, accumulate);
                });
              }
            });
          }
        }
        first_block = false;
      }
    }
  }
}

// Threads share the columns, so every sum runs over the rows in one order.
template <class V>
void segment_sum(const SegmentSum<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  constexpr int64_t kBlock = 8 * V::kLanes;  // a table of 65 rows x 128 floats stays in L1
  const int64_t vectors = ceil_div(p.M, V::kLanes);
  const int64_t m_begin = part(0, vectors, thread, threads) * V::kLanes;
  const int64_t share_end = part(0, vectors, thread + 1, threads) * V::kLanes;
  const int64_t m_end = share_end < p.M ? share_end : p.M;
  for (int64_t m0 = m_begin; m0 < m_end; m0 += kBlock) {
    const int64_t m1 = m_end - m0 < kBlock ? m_end : m0 + kBlock;
    for (int64_t k = 0; k < p.K; ++k) {
      S* sum = p.table + p.tokens[k] * p.M;
      const S* d = p.d + k * p.M;
      for (int64_t m = m0; m < m1; m += V::kLanes) {
        const int n = m1 - m < V::kLanes ? static_cast<int>(m1 - m) : V::kLanes;
        (V::load(sum + m, n) + V::load(d + m, n)).store(sum + m, n);
      }
    }
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace cpu
}  // namespace fastlstm
