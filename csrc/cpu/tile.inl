// The register tile under every matrix product here: MR rows times NV vectors of columns, accumulated over K in registers.
#pragma once

#include "simd.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// Rows of a panel that are fetched ahead from L2.
constexpr int kPrefetchDistance = 16;

constexpr int kPanelVectors = 4;  // widest panel: with kMaxRows rows it fills the register file

// Scalars of K that one pass over a panel takes: 4 x 64 x 512 bytes, 128 KB in fp32 with AVX-512, stay in L2 while the rows
// of a block pass, and 6 rows of A, 12 KB, in L1. Half of it: 4-8 % slower products at H >= 512 on Zen 4, since the tile of
// the result is then loaded and stored twice as often; a quarter: 15 %.
template <class S>
constexpr int64_t kBlockK = 2048 / static_cast<int64_t>(sizeof(S));
constexpr int64_t kBlockRows = 120;  // rows of A that pass, a multiple of every kMaxRows: 240 KB

// Walks over Rows in order, without a division a row.
template <class S>
class RowCursor {
 public:
  FASTLSTM_INLINE RowCursor(const Rows<S>& rows, int64_t k)
      : rows_(rows), column_(k % rows.inner), line_(rows.ptr + (k / rows.inner) * rows.outer_stride) {}
  FASTLSTM_INLINE S* next() {
    S* row = line_ + column_ * rows_.inner_stride;
    if (++column_ == rows_.inner) {
      column_ = 0;
      line_ += rows_.outer_stride;
    }
    return row;
  }

 private:
  const Rows<S>& rows_;
  int64_t column_;
  S* line_;
};

// acc[r][v] += sum_k a_r[k] * b[k][v], a_r in memory as it is.
template <class V, int MR, int NV>
FASTLSTM_INLINE void multiply_rows(const typename V::scalar* const* a, const typename V::scalar* b, int64_t K,
                                   V (&acc)[MR][NV]) {
  const typename V::scalar* rows[MR];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) rows[r] = a[r];
  for (int64_t k = 0; k < K; ++k) {
    V w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      w[v] = V::load(b + (k * NV + v) * V::kLanes);
      prefetch(b + ((k + kPrefetchDistance) * NV + v) * V::kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V x = V::broadcast(rows[r][k]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(x, w[v], acc[r][v]);
    }
  }
}

// The same with a packed as [K][MR].
template <class V, int MR, int NV>
FASTLSTM_INLINE void multiply_packed(const typename V::scalar* a, const typename V::scalar* b, int64_t K, V (&acc)[MR][NV]) {
  for (int64_t k = 0; k < K; ++k) {
    V w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      w[v] = V::load(b + (k * NV + v) * V::kLanes);
      prefetch(b + ((k + kPrefetchDistance) * NV + v) * V::kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V x = V::broadcast(a[k * MR + r]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(x, w[v], acc[r][v]);
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

// partial (+)= acc, between two blocks of K. Each block is summed from zero: the rounding error of a product then grows with
// the length of a block and the number of blocks, not with K, as in a blocked matrix product.
template <class V, int MR, int NV>
FASTLSTM_INLINE void add_tile(const V (&acc)[MR][NV], typename V::scalar* partial, bool first_block) {
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
FASTLSTM_INLINE int64_t part(int64_t begin, int64_t end, int64_t i, int64_t n) { return begin + (end - begin) * i / n; }
FASTLSTM_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
