// The register tile under every matrix product here: MR rows times NV vectors of columns,
// accumulated over K in registers.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

using cpu::kPanelVectors;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the products of lane type V are made of: operands are packed as Packed, each of kDepth terms
// of the sum, and Operand is a vector of them. Here the scalars themselves; bf16.inl has another.
template <class V>
struct Product {
  using Packed = typename V::scalar;
  using Operand = V;
  static constexpr int kDepth = 1;
  static FASTLSTM_INLINE Operand load(const Packed* p) { return V::load(p); }
  static FASTLSTM_INLINE Operand broadcast(Packed x) { return V::broadcast(x); }
  static FASTLSTM_INLINE V multiply_add(Operand a, Operand b, V sum) { return fma(a, b, sum); }
  // Of rows k, k + 1, ... k + kDepth - 1.
  static FASTLSTM_INLINE void store(const V (&rows)[kDepth], Packed* p) { rows[0].store(p); }
};
template <class V>
using Packed = typename Product<V>::Packed;

// Scratch and packed matrices are allocated as scalars, of which a packed element has the size.
template <class V>
FASTLSTM_INLINE Packed<V>* as_packed(typename V::scalar* p) {
  static_assert(sizeof(Packed<V>) == sizeof(typename V::scalar));
  return reinterpret_cast<Packed<V>*>(p);
}
template <class V>
FASTLSTM_INLINE const Packed<V>* as_packed(const typename V::scalar* p) {
  return reinterpret_cast<const Packed<V>*>(p);
}

// Packed elements that K terms take.
template <class V>
FASTLSTM_INLINE int64_t depth_of(int64_t K) {
  return (K + Product<V>::kDepth - 1) / Product<V>::kDepth;
}

// Rows of a panel that are fetched ahead from L2.
constexpr int kPrefetchDistance = 16;

// Scalars of K that one pass over a panel takes: 4 x 64 x 512 bytes, 128 KB in fp32 with AVX-512,
// stay in L2 while the rows of a block pass, and 6 rows of A, 12 KB, in L1. With half of it x W^T
// at H = 512 runs at 93 % of the peak instead of 98: the tile of the result is then loaded and
// stored twice as often.
template <class S>
constexpr int64_t kBlockK = 2048 / static_cast<int64_t>(sizeof(S));
constexpr int64_t kBlockRows = 120;  // rows of A that pass, a multiple of every kMaxRows: 240 KB

// Walks over Rows in order, without a division a row.
template <class S>
class RowCursor {
 public:
  FASTLSTM_INLINE RowCursor(const Rows<S>& rows, int64_t k)
      : rows_(rows),
        index_(rows.index ? rows.index + k : nullptr),
        column_(index_ ? 0 : k % rows.inner),
        line_(index_ ? rows.ptr : rows.ptr + (k / rows.inner) * rows.outer_stride) {}
  FASTLSTM_INLINE S* next() {
    if (index_) return line_ + *index_++ * rows_.inner_stride;
    S* row = line_ + column_ * rows_.inner_stride;
    if (++column_ == rows_.inner) {
      column_ = 0;
      line_ += rows_.outer_stride;
    }
    return row;
  }

 private:
  const Rows<S>& rows_;
  const int64_t* index_;
  int64_t column_;
  S* line_;
};

// Where a tile finds its rows of A: row r in memory as it is,
template <class S, int MR>
struct RowsOfA {
  const S* row[MR];
  explicit FASTLSTM_INLINE RowsOfA(const S* const* rows) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) row[r] = rows[r];
  }
  FASTLSTM_INLINE S at(int r, int64_t k) const { return row[r][k]; }
};
// or packed, [K][MR].
template <class S, int MR>
struct PackedA {
  const S* a;
  explicit FASTLSTM_INLINE PackedA(const S* packed) : a(packed) {}
  FASTLSTM_INLINE S at(int r, int64_t k) const { return a[k * MR + r]; }
};

// And its columns of B: packed, [K][NV][lanes],
template <class V, int NV>
struct PackedB {
  const Packed<V>* b;
  FASTLSTM_INLINE typename Product<V>::Operand at(int64_t k, int v) const {
    return Product<V>::load(b + (k * NV + v) * V::kLanes);
  }
  FASTLSTM_INLINE void fetch_ahead(int64_t k, int v) const {
    prefetch(b + ((k + kPrefetchDistance) * NV + v) * V::kLanes);
  }
};
// or in memory as they are, rows `stride` apart; the last vector holds `last` columns.
template <class V, int NV>
struct RowsOfB {
  const typename V::scalar* b;
  int64_t stride;
  int last;
  FASTLSTM_INLINE V at(int64_t k, int v) const {
    const typename V::scalar* p = b + k * stride + v * V::kLanes;
    return v == NV - 1 ? V::load(p, last) : V::load(p);
  }
  FASTLSTM_INLINE void fetch_ahead(int64_t k, int v) const {
    prefetch(b + (k + kPrefetchDistance) * stride + v * V::kLanes);
  }
};

// The rows of the step before as operands of a step's product: here where they are. Where they have
// to be converted, each thread does it once a step, in its part of a workspace.
template <class V>
struct StepOperands {
  using S = typename V::scalar;
  static constexpr bool kConverts = false;
  FASTLSTM_INLINE StepOperands(S*, int, int64_t, int64_t) {}
  FASTLSTM_INLINE const Packed<V>* row(int64_t, const S* from, int64_t k0) const {
    return from + k0;
  }
  FASTLSTM_INLINE const Packed<V>* zeros(const S* zeros) const { return zeros; }
};

template <class V, int MR, int NV>
FASTLSTM_INLINE void clear(V (&acc)[MR][NV]) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = V::broadcast(0);
  }
}

// Terms that one accumulator sums before it is added to the total. With one chain over each block
// of K the largest error of some gradients was above twice torch's; with chains of 128 the mean
// error is at most 1.03 of torch's at five shapes, and no product is slower.
constexpr int64_t kChain = 128;
// acc[r][v] = sum_k a[r][k] * b[k][v]. K counts packed elements; see kChain for `chain`.
template <class V, int MR, int NV, class A, class B>
FASTLSTM_INLINE void multiply(const A& a, const B& b, int64_t K, V (&acc)[MR][NV],
                              int64_t chain = kChain) {
  V total[MR][NV];
  clear(acc);
  const int64_t chains = ceil_div(K, chain);
  for (int64_t i = 0; i < chains; ++i) {
    const int64_t k0 = i * chain;
    const int64_t k1 = K - k0 < chain ? K : k0 + chain;
    if (i > 0) {
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) total[r][v] = i == 1 ? acc[r][v] : total[r][v] + acc[r][v];
      }
      clear(acc);
    }
    for (int64_t k = k0; k < k1; ++k) {
      typename Product<V>::Operand w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        w[v] = b.at(k, v);
        b.fetch_ahead(k, v);
      }
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const auto x = Product<V>::broadcast(a.at(r, k));
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] = Product<V>::multiply_add(x, w[v], acc[r][v]);
      }
    }
  }
  if (chains > 1) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = total[r][v] + acc[r][v];
    }
  }
}

// partial (+)= acc, between two blocks of K. Each block is summed from zero: the rounding error of
// a product then grows with the length of a block and the number of blocks, not with K, as in a
// blocked matrix product.
template <class V, int MR, int NV>
FASTLSTM_INLINE void add_tile(const V (&acc)[MR][NV], typename V::scalar* partial,
                              bool first_block) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      typename V::scalar* p = partial + (r * NV + v) * V::kLanes;
      (first_block ? acc[r][v] : V::load(p) + acc[r][v]).store(p);
    }
  }
}

// Calls f with n as a compile-time constant. 1 <= n <= kMax.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <int kMax, class F>
FASTLSTM_INLINE void with_constant(int n, F&& f) {
  if constexpr (kMax > 1) {
    if (n != kMax) return with_constant<kMax - 1>(n, static_cast<F&&>(f));
  }
  f(Constant<kMax>{});
}

// Part i of n parts of [begin, end), as even as can be.
FASTLSTM_INLINE int64_t part(int64_t begin, int64_t end, int64_t i, int64_t n) {
  return begin + (end - begin) * i / n;
}

// How the vectors of hidden units, or of columns, are cut into panels of at most kUnits vectors:
// see panel_count.
template <class V, int kUnits>
struct UnitPanels {
  int64_t vectors, count;
  explicit FASTLSTM_INLINE UnitPanels(int64_t columns)
      : vectors(ceil_div(columns, V::kLanes)), count(cpu::panel_count(vectors, kUnits)) {}
  FASTLSTM_INLINE int64_t begin(int64_t p) const { return part(0, vectors, p, count); }
};

// Cuts rows into tiles of at most kMax, evenly (32 rows of 6: 6 6 5 5 5 5), and calls f(first row,
// number of rows) with the number as a compile-time constant.
template <int kMax, class F>
FASTLSTM_INLINE void for_each_tile(int64_t rows, F&& f) {
  const int64_t tiles = ceil_div(rows, kMax);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = part(0, rows, tile, tiles);
    with_constant<kMax>(static_cast<int>(part(0, rows, tile + 1, tiles) - row),
                        [&](auto count) { f(row, count); });
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
