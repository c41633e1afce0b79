// Operands as the register tile wants them: panels of matrices, W_hh gate by gate, biases.
#pragma once

#include "kernels.h"
#include "tile.inl"

namespace fastlstm {
namespace cpu {
FASTLSTM_ISA_LOCAL_BEGIN

template <class V>
using Panels = UnitPanels<V, kPanelVectors>;

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

FASTLSTM_ISA_LOCAL_END
}  // namespace cpu
}  // namespace fastlstm
